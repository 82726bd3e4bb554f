import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from replay_server.rate_limiter import RateLimiter, insert_limits

BIG = 10**9


def limiter_of(ratio: float = 2.0, min_windows: int = 100, batch: int = 10, tolerance: int = 0) -> RateLimiter:
    return RateLimiter(samples_per_insert=ratio, min_windows=min_windows, batch=batch, tolerance=tolerance)


def test_nothing_is_sampled_before_the_minimum_and_no_burst_follows_it() -> None:
    limiter = limiter_of(ratio=8.0, min_windows=1000, batch=32)

    assert limiter.sampleable(inserted=999, sampled=0) == 0
    assert limiter.sampleable(inserted=1000, sampled=0) == 32  # one batch, not the 8,000 of windows long there


def test_windows_are_sampled_as_often_as_asked_for_in_the_long_run() -> None:
    limiter = limiter_of(ratio=3.0, min_windows=100, batch=10)

    assert limiter.sampleable(inserted=1100, sampled=0) == 3 * 1000 + 10
    assert limiter.insert_limit(sampled=3000) == 100 + math.ceil((3000 + 10) / 3)


def test_without_a_ratio_only_the_minimum_counts() -> None:
    limiter = limiter_of(ratio=0.0, min_windows=5)

    assert limiter.sampleable(inserted=4, sampled=0) == 0
    assert limiter.sampleable(inserted=5, sampled=BIG) > BIG
    assert limiter.insert_limit(sampled=0) > BIG


@given(
    ratio=st.floats(1e-3, 1e3),
    min_windows=st.integers(1, 1000),
    batch=st.integers(1, 1000),
    tolerance=st.integers(0, 3000),
    inserted=st.integers(0, 10**6),
    sampled=st.integers(0, 10**7),
)
def test_at_no_point_do_both_sides_wait(
    ratio: float, min_windows: int, batch: int, tolerance: int, inserted: int, sampled: int
) -> None:
    limiter = limiter_of(ratio, min_windows, batch, tolerance)

    may_sample = limiter.sampleable(inserted, sampled) >= batch
    may_insert = inserted < limiter.insert_limit(sampled)

    assert may_sample or may_insert


@given(st.integers(0, 1000), st.lists(st.integers(0, 100), min_size=1, max_size=9))
def test_the_shards_share_what_may_still_be_inserted_up_to_rounding(limit: int, inserted: list[int]) -> None:
    limits = insert_limits(limit, inserted)

    shares = [mine - already for mine, already in zip(limits, inserted, strict=True)]
    left = max(0, limit - sum(inserted))
    assert left <= sum(shares) < left + len(inserted)
    assert max(shares) - min(shares) == 0


def test_a_dead_shard_holds_up_nobody() -> None:
    inserted = [0, 0, 0]  # the first one takes nothing, ever

    for _ in range(20):
        limits = insert_limits(1000, inserted)
        inserted = [0, *limits[1:]]

    assert sum(inserted) >= 1000


class ManyPartiesShareTheAccount(RuleBasedStateMachine):
    """Writers insert unrolls of any size, shards die, the router hears of each shard at any time, batches are drawn."""

    @initialize(
        ratio=st.sampled_from([0.1, 0.5, 1.0, 2.0, 7.3]),
        min_windows=st.integers(1, 60),
        batch=st.integers(1, 40),
        tolerance=st.integers(0, 100),
        shards=st.integers(1, 5),
        writers=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    )
    def begin(
        self, ratio: float, min_windows: int, batch: int, tolerance: int, shards: int, writers: list[int]
    ) -> None:
        self.ratio, self.min_windows, self.batch = ratio, min_windows, batch
        self.tolerance = max(tolerance, batch)
        self.limiter = limiter_of(ratio, min_windows, batch, tolerance)
        self.writers = [writer % shards for writer in writers]  # the shard of each
        self.alive = [shard in self.writers for shard in range(shards)]  # without writers it is as good as dead
        self.inserted, self.known, self.limits = [0] * shards, [0] * shards, [0] * shards
        self.sampled, self.most_left, self.largest_unroll = 0, 0, 0

    @rule(shard=st.integers(0, 4))
    def hear_of(self, shard: int) -> None:
        shard %= len(self.alive)
        if not self.alive[shard]:
            return
        self.known[shard] = self.inserted[shard]
        limit = self.limiter.insert_limit(self.sampled)
        self.most_left = max(self.most_left, limit - sum(self.known))
        self.limits[shard] = insert_limits(limit, self.known)[shard]

    @rule(writer=st.integers(0, 7), windows=st.integers(0, 50))
    def insert(self, writer: int, windows: int) -> None:
        shard = self.writers[writer % len(self.writers)]
        if self.alive[shard] and self.inserted[shard] < self.limits[shard]:
            self.inserted[shard] += windows
            self.largest_unroll = max(self.largest_unroll, windows)

    @rule(batches=st.integers(1, 4))
    def sample(self, batches: int) -> None:
        allowed = self.limiter.sampleable(sum(self.known), self.sampled) // self.batch
        self.sampled += min(batches, allowed) * self.batch

    @rule(shard=st.integers(0, 4))
    def die(self, shard: int) -> None:
        shard %= len(self.alive)
        assume(sum(self.alive) > self.alive[shard])  # with all of them dead there is nobody to wait for
        self.alive[shard] = False

    @rule()
    def once_all_are_heard_of_somebody_may_go_on(self) -> None:
        for shard in range(len(self.alive)):
            self.hear_of(shard)
        for shard in range(len(self.alive)):  # whoever was asked first has learned of the others now
            self.hear_of(shard)
        may_sample = self.limiter.sampleable(sum(self.known), self.sampled) >= self.batch
        may_insert = [a and i < m for a, i, m in zip(self.alive, self.inserted, self.limits, strict=True)]
        assert may_sample or any(may_insert)

    @invariant()
    def the_ratio_holds(self) -> None:
        line = self.ratio * (sum(self.inserted) - self.min_windows)
        assert self.sampled <= max(0.0, line + self.tolerance)
        shards = len(self.alive)
        in_writers_hands = shards * (math.ceil(self.most_left / shards) + self.largest_unroll)
        assert sum(self.inserted) <= self.limiter.insert_limit(self.sampled) + 2 * in_writers_hands


TestManyPartiesShareTheAccount = ManyPartiesShareTheAccount.TestCase
TestManyPartiesShareTheAccount.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("ratio", [0.05, 1.0, 40.0])
def test_a_long_run_ends_at_its_ratio(ratio: float, batch: int, shards: int) -> None:
    limiter = limiter_of(ratio, min_windows=200, batch=batch)
    inserted, sampled, unroll = [0] * shards, 0, 64

    for _ in range(2000):  # everybody does whatever is allowed
        limits = insert_limits(limiter.insert_limit(sampled), inserted)
        inserted = [now + unroll * (now < limit) for now, limit in zip(inserted, limits, strict=True)]
        sampled += min(1, limiter.sampleable(sum(inserted), sampled) // batch) * batch

    line = ratio * (sum(inserted) - 200)
    assert sampled > 0
    assert abs(sampled - line) <= batch + ratio * shards * unroll
