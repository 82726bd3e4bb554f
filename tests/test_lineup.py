"""The lineup: an update takes one unroll of its version from every actor, and nobody waits for ever."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from learner.inlet import version_of
from learner.lineup import Lineup
from starling.metrics import no_clock
from starling.types import Unroll
from tests.unrolls import unroll_of


class Hands:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_update_takes_one_unroll_of_every_actor_in_their_order() -> None:
    lineup = Lineup(3, no_clock)
    for actor in (2, 0, 1):
        assert lineup.insert(unroll_of(actor, version=4)).accepted

    unrolls = lineup.take(version=4)

    assert [unroll.actor for unroll in unrolls if isinstance(unroll, Unroll)] == [0, 1, 2]
    assert isinstance(lineup.take(version=4), str)  # each is used once


def test_stragglers_are_named_and_for_how_long_they_are_waited_for() -> None:
    clock = Hands()
    lineup = Lineup(4, clock)
    lineup.take(version=7)
    for actor in (0, 2):
        lineup.insert(unroll_of(actor, version=7))

    clock.now = 3.0

    assert lineup.take(version=7) == "learner waits for unrolls of version 7 from actor[1], actor[3], for 3 s"
    clock.now = 4.0
    assert lineup.take(version=8).endswith("actor[0], actor[1], actor[2], actor[3], for 0 s")  # type: ignore[union-attr]


def test_an_unroll_of_another_version_is_dropped_and_counted() -> None:
    lineup = Lineup(2, no_clock)
    lineup.insert(unroll_of(0, version=3))
    lineup.insert(unroll_of(1, version=4))

    said = lineup.take(version=4)

    assert said == "learner waits for unrolls of version 4 from actor[0], for 0 s"
    assert lineup.stats() == {"counts": {"unrolls_stale": 1, "unrolls_refused": 0}, "gauges": {"queued": 1.0}}


def test_a_repeated_unroll_and_a_second_one_of_the_same_version_are_refused() -> None:
    lineup = Lineup(2, no_clock)
    first = lineup.insert(unroll_of(0, sequence=5, version=4))
    repeated = lineup.insert(unroll_of(0, sequence=5, version=4))
    of_the_successor = lineup.insert(unroll_of(0, generation=1, version=4))
    of_the_replaced = lineup.insert(unroll_of(0, sequence=6, version=5))
    newer = lineup.insert(unroll_of(0, generation=1, sequence=1, version=5))

    accepted = [reply.accepted for reply in (first, repeated, of_the_successor, of_the_replaced, newer)]
    assert accepted == [True, False, False, False, True]
    assert lineup.stats()["counts"] == {"unrolls_stale": 1, "unrolls_refused": 3}


def test_a_lineup_that_begins_again_is_empty_and_has_heard_nobody() -> None:
    lineup = Lineup(1, no_clock)
    lineup.insert(unroll_of(generation=5))

    lineup.clear()

    assert isinstance(lineup.take(version=1), str)
    assert lineup.insert(unroll_of(generation=0)).accepted


@dataclass
class Player:
    """An actor as the lineup knows it: it plays once by each version, and sends what it played a while later."""

    actor: int
    generation: int = 0
    played: int = 0
    sequence: int = 0
    flying: list[Unroll] = field(default_factory=list)


@dataclass
class World:
    """Two actors, a learner and a parameter server, of which one thing happens at a time."""

    lineup: Lineup = field(default_factory=lambda: Lineup(2, no_clock))
    players: list[Player] = field(default_factory=lambda: [Player(0), Player(1)])
    version: int = 1  # of the learner, and published: the server answers for it
    learner: int = 0  # its generation
    updates: int = 0
    replaced: int = 0

    def copy(self) -> "World":
        lineup = Lineup(2, no_clock)
        lineup.__dict__.update({**self.lineup.__dict__, "_held": dict(self.lineup._held)})
        lineup._heard = type(self.lineup._heard)()
        lineup._heard._newest = dict(self.lineup._heard._newest)
        lineup._counts = dict(self.lineup._counts)
        players = [replace(player, flying=list(player.flying)) for player in self.players]
        return replace(self, lineup=lineup, players=players)

    def moves(self) -> Iterator[str]:
        """Yield everything that can happen next: what somebody does, or that somebody is replaced."""
        for player in self.players:
            if self.version > player.played and not player.flying:
                yield f"play {player.actor}"
            if player.flying:
                yield f"deliver {player.actor}"
        yield "learn"
        if self.replaced < 2:
            yield from ("replace 0", "replace 1", "replace learner")

    def make(self, move: str) -> "World":
        after = self.copy()
        after._make(move)
        return after

    def _make(self, move: str) -> None:
        what, _, whom = move.partition(" ")
        match what, whom:
            case "play", actor:
                player = self.players[int(actor)]
                player.flying.append(unroll_of(player.actor, player.sequence, self.version, player.generation, steps=1))
                player.played, player.sequence = self.version, player.sequence + 1
            case "deliver", actor:
                player = self.players[int(actor)]
                self.lineup.insert(player.flying.pop(0))
            case "learn", _:
                unrolls = self.lineup.take(self.version)
                if not isinstance(unrolls, str):
                    assert [unroll.actor for unroll in unrolls] == [0, 1]
                    assert {version_of(unroll) for unroll in unrolls} == {self.version}
                    self.version, self.updates = self.version + 1, self.updates + 1
            case "replace", "learner":  # what it held is lost; it publishes before it learns
                self.lineup, self.version = Lineup(2, no_clock), self.version + 1
                self.replaced += 1
            case "replace", actor:  # what it had in flight is lost
                old = self.players[int(actor)]
                self.players[int(actor)] = Player(old.actor, old.generation + 1)
                self.replaced += 1

    def signature(self) -> tuple[object, ...]:
        """Return all that decides how it goes on, versions counted from the learner's."""
        held = sorted((actor, version - self.version) for actor, (version, _) in self.lineup._held.items())
        players = [
            (p.played - self.version, p.generation, tuple(version_of(u) - self.version for u in p.flying))
            for p in self.players
        ]
        heard = sorted((actor, number[0]) for actor, number in self.lineup._heard._newest.items())
        return tuple(held), tuple(players), tuple(heard), self.replaced


def test_whoever_is_replaced_whenever_nobody_waits_for_ever() -> None:
    """Every interleaving with up to two replacements: from wherever it leads, work alone leads to an update."""
    seen: set[tuple[object, ...]] = set()
    left = [World()]
    while left:
        world = left.pop()
        if world.signature() in seen:
            continue
        seen.add(world.signature())
        assert gets_on(world)
        left += [world.make(move) for move in world.moves()]

    assert len(seen) > 500


def gets_on(world: World, turns: int = 4) -> bool:
    """Whether the learner learns when everybody does whatever work there is, in turns, and nobody is replaced."""
    before = world.updates
    for _ in range(turns):
        for move in ("play 0", "deliver 0", "play 1", "deliver 1", "learn"):
            if move in set(world.moves()):
                world = world.make(move)
    return world.updates > before


def test_the_simulation_notices_an_actor_that_does_not_play_a_version_anew() -> None:
    world = World().make("play 0").make("replace 0")
    world.players[0].played = world.version

    with pytest.raises(AssertionError):
        assert gets_on(world)
