import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from actors import worker
from actors.config import PlayConfig
from actors.copies import Copies
from actors.envs import EnvConfig, make_copies
from actors.worker import Actor, ActorConfig, OwnNetworks
from starling.errors import ConfigError
from starling.params import Params
from starling.types import Unroll
from starling.windows import Window
from tests.counting import Counting, CountingVector
from tests.playing import params_of, rollout_of


class Sink:
    """Takes unrolls while it has room."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.unrolls: list[Unroll] = []

    def insert(self, unroll: Unroll) -> None:
        self.unrolls.append(unroll)
        self.room -= 1

    def must_wait(self) -> str:
        return "" if self.room else "insert credit from replay_server[1]"


class Source:
    """Holds one version of the parameters and counts how often it was asked."""

    def __init__(self, version: int = 0) -> None:
        self.version = version
        self.asked = 0

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        self.asked += 1
        return (self.version, params_of(self.version)) if self.version > newer_than else None


class Ticking:
    """A clock that is a second further at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def actor_with(source: Source, sink: Sink, fetch_every: int = 0, lockstep: bool = False) -> Actor:
    rollout = rollout_of(make_copies(EnvConfig(id="counting", copies=3), Counting), Window(length=2))
    player = OwnNetworks(rollout, source, fetch_every, lockstep)
    return Actor(PlayConfig(unroll_length=4), player, sink, Ticking())


def test_an_actor_waits_for_the_first_parameters() -> None:
    sink = Sink()
    actor = actor_with(Source(), sink)

    progress = actor.step()

    assert progress.waits == "actor[2] waits for the first parameters"
    assert not sink.unrolls


def test_an_actor_plays_and_sends_one_unroll_in_each_step() -> None:
    sink = Sink()
    actor = actor_with(Source(version=5), sink)

    progress = [actor.step() for _ in range(3)]

    assert [unroll.sequence for unroll in sink.unrolls] == [0, 1, 2]
    assert all(p.work["env_steps"] == 12 and not p.waits for p in progress)
    assert all((unroll.columns["version"] == 5).all() for unroll in sink.unrolls)


def test_an_actor_that_must_wait_plays_nothing_and_says_for_whom() -> None:
    sink = Sink(room=1)
    actor = actor_with(Source(version=1), sink)
    actor.step()

    progress = actor.step()

    assert progress.waits == "actor[2] waits for insert credit from replay_server[1]"
    assert not progress.work
    assert len(sink.unrolls) == 1


def test_nothing_is_lost_while_an_actor_waits() -> None:
    def observations(rooms: list[int]) -> list[float]:
        sink = Sink(room=0)
        actor = actor_with(Source(version=1), sink)
        for room in rooms:
            sink.room = room
            actor.step()
        return np.concatenate([unroll.columns["obs"] for unroll in sink.unrolls]).ravel().tolist()

    assert observations([1, 0, 0, 1, 0, 1]) == observations([1, 1, 1])


def test_newer_parameters_act_from_the_next_unroll_on() -> None:
    source, sink = Source(version=1), Sink()
    actor = actor_with(source, sink)
    actor.step()

    source.version = 7
    actor.step()

    assert [unroll.columns["version"][0, 0] for unroll in sink.unrolls] == [1, 7]
    assert actor.stats()["gauges"]["version"] == 7


def test_in_lockstep_an_actor_plays_once_by_each_version() -> None:
    source, sink = Source(version=7), Sink()
    actor = actor_with(source, sink, lockstep=True)

    said = [actor.step().waits for _ in range(3)]
    source.version = 9
    said += [actor.step().waits for _ in range(2)]

    assert [int(unroll.columns["version"].min()) for unroll in sink.unrolls] == [7, 9]
    waits = [f"actor[2] waits for version {version} of the parameters" for version in (8, 10)]
    assert said == ["", waits[0], waits[0], "", waits[1]]


def test_an_actor_that_begins_again_plays_the_present_version_anew() -> None:
    source, sink = Source(version=7), Sink()
    actor = actor_with(source, sink, lockstep=True)
    actor.step()
    actor.step()

    actor.restart(np.random.SeedSequence(3), generation=1)
    actor.step()

    assert [unroll.generation for unroll in sink.unrolls] == [0, 1]


def test_parameters_are_looked_for_only_when_they_are_due() -> None:
    source = Source(version=1)
    actor = actor_with(source, Sink(), fetch_every=30)

    for _ in range(6):  # of 12 env steps each: due before the first and, 36 steps on, before the fourth
        actor.step()

    assert source.asked == 2


def test_an_actor_says_what_it_did_and_where_its_time_went() -> None:
    sink = Sink(room=2)
    actor = actor_with(Source(version=1), sink)

    for _ in range(3):
        actor.step()

    stats = actor.stats()
    assert stats["counts"]["env_steps"] == 24
    assert stats["counts"]["unrolls"] == 2
    assert stats["counts"]["episodes"] == sum(len(unroll.final_at) for unroll in sink.unrolls)
    assert stats["time_s"]["stepping"] == pytest.approx(8)  # one tick in each of 2 x 4 vector steps
    assert stats["time_s"]["acting"] == pytest.approx(8)
    assert {"priorities", "inserting", "waiting_credit"} <= set(stats["time_s"])


def test_an_actor_tells_of_each_ended_episode_once() -> None:
    sink = Sink()
    actor = actor_with(Source(version=1), sink)

    for _ in range(3):
        actor.step()
    told = actor.take()

    assert sum(len(figures["return"]) for figures in told) == sum(len(unroll.final_at) for unroll in sink.unrolls)
    assert actor.take() == []


def test_autoreset_rows_are_not_counted_as_steps() -> None:
    vector = CountingVector(3, [11, 22, 33], AutoresetMode.NEXT_STEP)
    sink = Sink()
    rollout = rollout_of(Copies(vector, EnvConfig(id="counting", copies=3)), Window())
    actor = Actor(PlayConfig(unroll_length=20), OwnNetworks(rollout, Source(version=1)), sink, Ticking())

    progress = actor.step()

    resets = np.count_nonzero(~sink.unrolls[0].columns["acted"])
    assert resets > 5
    assert progress.work["env_steps"] == 3 * 20 - resets


@pytest.mark.parametrize("name", ["num", "unroll_length"])
def test_a_setting_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"actor\.{name} must be >= 1, got 0"):
        ActorConfig(**{name: 0})


def test_episodes_that_nobody_asks_for_take_no_more_memory_than_their_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_UNTOLD", 2)
    actor = actor_with(Source(version=1), Sink())

    for _ in range(12):
        actor.step()
    told = actor.take()

    assert len(told) == 2
    assert actor.take() == []
