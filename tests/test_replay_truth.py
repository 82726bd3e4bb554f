"""Random worlds beside a reference that keeps everything: what a shard holds, after each insert."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_server.shard import ReplayShard
from replay_server.starts import ring_size
from starling.types import SampleReply, Unroll
from starling.windows import Window, stacked
from tests.replay_worlds import CountingWorld, Held, Ledger, draw, make_shard

ACTORS = 3
GAP = 17  # rows that are nobody's


@dataclass(frozen=True)
class Story:
    """What a few actors do to a shard, and what windows it serves."""

    seed: int
    window: Window
    capacity: int
    recurrent: bool
    copies: int
    end_probability: float
    next_step: bool
    events: list[tuple[int, int, str]]  # whose turn it is, the length of the unroll, and what happens to it

    def shard(self, seed: int = 0) -> ReplayShard:
        """Return an empty shard for it."""
        alpha = 0.0 if self.seed % 2 else 1.0
        settings = {"alpha": alpha, "capacity": self.capacity, "min_windows": 1}
        return make_shard(self.window, seed=seed, origin=3, recurrent=self.recurrent, **settings)

    def worlds(self) -> list[CountingWorld]:
        """Return the actors at its beginning."""
        ledger = Ledger()
        period = self.window.period if self.recurrent else 0
        plot = (self.copies, self.end_probability, self.next_step)
        seeds = np.random.SeedSequence(self.seed).spawn(ACTORS)
        return [
            CountingWorld(
                np.random.default_rng(seeds[i]), *plot, actor=i, ledger=ledger, period=period, states_sent=0.9
            )
            for i in range(ACTORS)
        ]

    def tell(self, worlds: list[CountingWorld]) -> Iterator[tuple[Unroll, str]]:
        """Yield each unroll that reaches the shard, and what happens to it."""
        before: dict[int, Unroll] = {}
        for actor, length, what in self.events:
            if what == "repeated" and actor in before:
                yield before[actor], what
                continue
            if what == "restart":
                worlds[actor].restart()
            if what == "lost":
                worlds[actor].unroll(length, lost=True)
            if what == "gap":
                worlds[actor].ledger.rows += GAP
            before[actor] = worlds[actor].unroll(length)
            yield before[actor], "" if what == "repeated" else what


@st.composite
def windows(draw: st.DrawFn) -> Window:
    length = draw(st.integers(1, 6))
    return Window(
        length=length,
        period=draw(st.sampled_from([1, 2, 3, 8])),
        every_obs=draw(st.booleans()),
        burn_in=draw(st.integers(0, length - 1)),
        stack=draw(st.integers(1, 4)),
    )


EVENTS = st.tuples(
    st.integers(0, ACTORS - 1),
    st.integers(1, 6),
    st.sampled_from(["", "", "", "", "", "lost", "repeated", "restart", "gap"]),
)
STORIES = st.builds(
    Story,
    seed=st.integers(0, 2**32),
    window=windows(),
    capacity=st.integers(36, 90),
    recurrent=st.booleans(),
    copies=st.integers(1, 3),
    end_probability=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    next_step=st.booleans(),
    events=st.lists(EVENTS, min_size=1, max_size=25),
)


@given(story=STORIES)
def test_after_each_insert_a_shard_holds_the_windows_that_are_whole_and_alive_and_nothing_else(story: Story) -> None:
    assert_true(story)


@pytest.mark.parametrize("stack", [1, 3])
def test_windows_go_with_their_recurrent_states_where_short_episodes_fill_the_ring(stack: int) -> None:
    window = Window(length=3, period=8, every_obs=True, burn_in=1, stack=stack)
    events = [(turn % ACTORS, 6, "") for turn in range(30)]

    assert_true(Story(3, window, 90, recurrent=True, copies=2, end_probability=0.9, next_step=False, events=events))


def assert_true(story: Story) -> None:
    shard, worlds = story.shard(), story.worlds()
    for unroll, what in story.tell(worlds):
        assert happens(shard, unroll, what) == (what != "repeated")

        truth = all_windows(story, worlds)
        by_row = {held.steps[0].position: held for held in truth.values()}
        assert rows_with_mass(shard) == set(by_row)
        sample = draw(shard, 8)
        assert sample.size == len(truth)
        for n, key in enumerate(sample.keys.tolist()):
            assert_is(story.window, sample, n, by_row[key - (3 << 40)], story.recurrent)


def happens(shard: ReplayShard, unroll: Unroll, what: str) -> bool:
    """Hand an unroll to a shard, and say whether it was stored."""
    if what == "gap":
        shard.refill(unroll, shard.rows[1] + GAP)
        return True
    return shard.insert(unroll).accepted


def all_windows(story: Story, worlds: list[CountingWorld]) -> dict[tuple[int, int], Held]:
    states = ring_size(story.capacity, story.window.period)
    found: dict[tuple[int, int], Held] = {}
    for world in worlds:
        found |= world.windows(story.window, story.capacity, states)
    return found


def rows_with_mass(shard: ReplayShard) -> set[int]:
    index = shard.index()
    return set((index.meta["first"] + np.flatnonzero(index.arrays["masses"])).tolist())


def assert_is(window: Window, reply: SampleReply, n: int, held: Held, recurrent: bool) -> None:
    steps, columns = len(held.steps), reply.columns
    padding = window.length - steps
    for name in ("action", "reward", "terminated", "truncated", "version", "log_mu"):
        assert columns[name][:, n].tolist() == [getattr(step, name) for step in held.steps] + [0] * padding
    assert columns["valid"][:, n].tolist() == [True] * steps + [False] * padding
    if window.burn_in:
        warming_up = 0 if held.steps[0].age == 0 else window.burn_in
        assert columns["learn"][:, n].tolist() == [warming_up <= step < steps for step in range(window.length)]
    assert ("learn" in columns) == (window.burn_in > 0)
    if recurrent:
        assert reply.starts["h"][n].tolist() == [held.steps[0].state] * 3
    obs = stacked(columns["obs"], window)[:, n]
    if window.stack == 1:
        obs = obs[:, None]
    at = [*range(steps + 1)] if window.every_obs else [0, steps]
    seen = obs[: steps + 1] if window.every_obs else obs
    assert seen.tolist() == [[list(frame) for frame in held.stack(step, window.stack)] for step in at]
    if window.every_obs and window.stack == 1:
        assert (obs[steps:] == obs[steps]).all()


@given(story=STORIES, cut=st.integers(0, 25), draws=st.integers(1, 9))
def test_a_shard_whose_unrolls_are_stored_again_goes_on_bit_for_bit(story: Story, cut: int, draws: int) -> None:
    first, second = story.shard(seed=1), story.shard(seed=2)
    told = list(story.tell(story.worlds()))
    log: list[tuple[int, Unroll]] = []
    for unroll, what in told[:cut]:
        if happens(first, unroll, what):
            log.append((first.rows[1], unroll))
        learn_from(first, draws)

    for end, unroll in log:
        if end > first.rows[0]:  # of the others nothing is left
            second.refill(unroll, end - unroll.num_steps - len(unroll.final_at))
    second.adopt(first.index(), account=True, writers=True)

    assert_same(first, second)
    for unroll, what in told[cut:]:
        assert happens(first, unroll, what) == happens(second, unroll, what)
        np.testing.assert_equal(asdict(learn_from(first, draws)), asdict(learn_from(second, draws)))
    assert_same(first, second)


def learn_from(shard: ReplayShard, draws: int) -> SampleReply:
    reply = draw(shard, draws)
    priorities = np.linspace(0.1, 9.0, len(reply.keys)).tolist()
    draw(shard, 0, keys=reply.keys.tolist(), priorities=priorities, largest_priority=11.0)
    return reply


def assert_same(one: ReplayShard, other: ReplayShard) -> None:
    first, second = one.index(), other.index()
    begin = max(first.meta["first"], second.meta["first"])  # older rows of one of them begin no window any more
    for name in ("masses", "times_sampled"):
        own, others = (index.arrays[name][begin - index.meta["first"] :] for index in (first, second))
        np.testing.assert_array_equal(own, others)
    assert rows_with_mass(one) == rows_with_mass(other)
    assert {**first.meta, "first": 0} == {**second.meta, "first": 0}
