from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from replay_server.config import ReplayConfig
from replay_server.local import LocalReplay, LocalSink
from replay_server.router import Router, nothing
from replay_server.shard import ReplayShard
from starling.metrics import no_clock
from starling.types import ReplaySource, Sampled, SampleReply, SampleRequest
from starling.windows import Window
from tests.replay_worlds import CountingWorld, bandit_shard, bandit_unroll, draw, make_shard

PRIORITIES = [0.5, 4.0, 1.0, 2.0, 0.1, 0.2, 0.3, 7.0, 1.5, 3.0, 3.0, 0.9]


def spread(num_shards: int) -> list[list[float]]:
    """Give the first shard half of the windows, the next one half of the rest, and so on."""
    edges = [*(len(PRIORITIES) - (len(PRIORITIES) >> shard) for shard in range(num_shards)), len(PRIORITIES)]
    return [PRIORITIES[start:stop] for start, stop in pairwise(edges)]


def bandit_shards(num_shards: int) -> list[ReplayShard]:
    """Return shards whose observations are (shard, serial number)."""
    return [bandit_shard(part, actor=shard, seed=shard) for shard, part in enumerate(spread(num_shards))]


def router_of(source: ReplaySource, batch_size: int = 16, depth: int = 1, seed: int = 0, **config: Any) -> Router:
    settings = {"min_windows": 1, "samples_per_insert": 0.0, **config}
    batches = settings.pop("batches_per_request", 1)
    rng = np.random.default_rng(seed)
    return Router(source, ReplayConfig(**settings), rng, no_clock, batch_size, batches, depth)


class SlowReplay:
    """Shards that take up requests when told to, and whose answers come in any order of the shards."""

    def __init__(self, shards: list[ReplayShard], seed: int = 0) -> None:
        self.shards = shards
        self._rng = np.random.default_rng(seed)
        self.requests: list[tuple[int, SampleRequest]] = []
        self._replies: list[tuple[int, SampleReply]] = []

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def request(self, shard: int, request: SampleRequest) -> None:
        self.requests.append((shard, request))

    def replies(self) -> list[tuple[int, SampleReply]]:
        answers, self._replies = self._replies, []
        return answers

    def work(self, only: int | None = None) -> None:
        for shard in self._rng.permutation(self.num_shards):
            mine = [request for index, request in self.requests if index == shard and only in (None, shard)]
            self.requests = [entry for entry in self.requests if entry[0] != shard or only not in (None, shard)]
            self._replies += [(int(shard), self.shards[shard].sample(request)) for request in mine]


def taken(router: Router) -> Sampled:
    batch = router.take()
    assert not isinstance(batch, str), batch
    return batch


def which(batch: Sampled, num_shards: int) -> np.ndarray:
    """Return each window's place in PRIORITIES."""
    starts = np.cumsum([0, *map(len, spread(num_shards))])
    shard, serial = batch.columns["obs"][0].astype(int).T
    np.testing.assert_array_equal(shard, batch.ticket.shards)
    return starts[shard] + serial - 1


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_weights_are_those_of_one_big_tree_over_their_largest(num_shards: int) -> None:
    router = router_of(LocalReplay(bandit_shards(num_shards)), batch_size=32, beta=0.7)

    batch = taken(router)

    probability = np.array(PRIORITIES)[which(batch, num_shards)] / sum(PRIORITIES)
    weights = (len(PRIORITIES) * probability) ** -0.7
    np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-6)


def test_weights_use_the_shares_that_were_asked_for_and_the_masses_at_the_draw() -> None:
    shards = bandit_shards(2)
    source = SlowReplay(shards)
    router = router_of(source, batch_size=32, beta=0.4)
    router.take()
    source.work()
    router.take()  # asks, by the masses of now
    before = np.array([sum(part) for part in spread(2)])
    shards[1].insert(bandit_unroll([50.0, 60.0], sequence=1, actor=1))
    source.work()

    batch = taken(router)

    shard = batch.ticket.shards
    parts = [np.array(spread(2)[0]), np.array([*spread(2)[1], 50.0, 60.0])]
    mass = np.array([part.sum() for part in parts])
    row = batch.columns["reward"][0].astype(int) + np.where((shard == 1) & new_windows(batch), len(spread(2)[1]), 0)
    priority = np.array([parts[s][r] for s, r in zip(shard, row, strict=True)])
    probability = priority / mass.sum()
    effective = (before / before.sum())[shard] * priority / mass[shard]
    weights = (14 * probability) ** -0.4 * probability / effective
    np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-6)


def new_windows(batch: Sampled) -> np.ndarray:
    return batch.ticket.keys >= 2 * len(spread(2)[1])  # behind the steps and last observations of the first unroll


def test_beta_grows_with_the_windows_sampled() -> None:
    settings = {"beta": 0.0, "beta_final": 1.0, "beta_steps": 64}
    router = router_of(LocalReplay(bandit_shards(2)), batch_size=32, **settings)

    batches = [taken(router) for _ in range(3)]

    for batch, beta in zip(batches, (0.5, 1.0, 1.0), strict=True):
        weights = np.array(PRIORITIES)[which(batch, 2)] ** -beta
        np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-6)


def test_priorities_find_the_way_back_to_their_windows() -> None:
    shards = bandit_shards(4)
    router = router_of(LocalReplay(shards), batch_size=64)
    batch = taken(router)
    chosen = which(batch, 4)

    router.update_priorities(batch.ticket, 100.0 + chosen)
    taken(router)

    expected = np.array(PRIORITIES)
    expected[chosen] = 100.0 + chosen
    assert sum(draw(shard, 0).mass for shard in shards) == pytest.approx(expected.sum())


def test_every_shard_learns_of_the_largest_priority() -> None:
    shards = bandit_shards(2)
    router = router_of(LocalReplay(shards))
    batch = taken(router)
    router.update_priorities(batch.ticket, np.where(np.arange(16) == 0, 500.0, np.nan))
    taken(router)

    for shard, replay in enumerate(shards):
        before = draw(replay, 0).mass
        replay.insert(bandit_unroll(None, count=1, sequence=1, actor=shard))
        assert draw(replay, 0).mass == pytest.approx(before + 500.0)


def test_whatever_the_order_of_the_answers_batches_come_whole_and_in_the_order_of_the_shards() -> None:
    source = SlowReplay(bandit_shards(4))
    router = router_of(source, batch_size=16, depth=3, batches_per_request=4)
    rng = np.random.default_rng(1)
    batches = []

    for _ in range(400):
        source.work(only=int(rng.integers(4)))
        batch = router.take()
        if not isinstance(batch, str):
            batches.append(batch)

    assert len(batches) > 50
    for batch in batches:
        which(batch, 4)  # checks each window against its ticket
        assert len(batch.weights) == 16
        assert (np.diff(batch.ticket.shards) >= 0).all()


def test_no_more_than_depth_draws_are_in_flight() -> None:
    source = SlowReplay(bandit_shards(2))
    router = router_of(source, depth=3)
    router.take()
    source.work()

    for _ in range(10):
        router.take()

    assert len(source.requests) == 3 * 2
    assert router.take() == "learner waits for replay_server[0], replay_server[1]"


def test_a_waiting_learner_asks_each_shard_once_at_a_time() -> None:
    source = SlowReplay([make_shard(), make_shard()])
    router = router_of(source, min_windows=1000)

    reasons = {router.take() for _ in range(10)}

    assert reasons == {"learner waits for windows: 0 of 1000 inserted"}
    assert len(source.requests) == 2


def test_the_learner_waits_for_inserts_and_says_so() -> None:
    router = router_of(LocalReplay(bandit_shards(2)), batch_size=8, samples_per_insert=1.0, min_windows=4)

    batches = [router.take() for _ in range(4)]

    assert [isinstance(batch, str) for batch in batches] == [False, False, True, True]
    assert batches[-1] == "learner waits for windows: 16 sampled, 12 inserted, replay.samples_per_insert is 1.0"


def test_a_replay_that_holds_no_window_any_more_is_named_too_small() -> None:
    shard = make_shard(Window(length=50), capacity=40, min_windows=1)
    shard.insert(bandit_unroll(None, count=20))
    shard.insert(CountingWorld(np.random.default_rng(0), copies=1, end_probability=0.0, actor=1).unroll(40))
    router = router_of(LocalReplay([shard]))

    assert router.take() == "learner waits for windows: none left of 20 inserted, replay.capacity is too small"


def test_a_shard_that_has_become_empty_makes_the_batch_smaller_and_is_not_charged() -> None:
    shards = bandit_shards(2)
    source = SlowReplay([shards[0], make_shard()])
    router = router_of(source)
    router.take()
    source.work()
    router.take()
    assert [sum(request.counts) for _, request in source.requests] == [16, 0]
    source.shards[0] = make_shard()
    source.work()

    reason = router.take()

    assert isinstance(reason, str)
    assert router.stats()["gauges"]["sampled"] == 0


def test_writers_go_on_and_off_with_the_ratio() -> None:
    shards = [make_shard(min_windows=8, shards=2) for _ in range(2)]
    sinks = [LocalSink(shard, index) for index, shard in enumerate(shards)]
    router = router_of(LocalReplay(shards), batch_size=4, samples_per_insert=0.5, min_windows=8, shards=2)
    sequences = [0, 0]
    batches = 0

    for _ in range(300):
        for index, sink in enumerate(sinks):
            if not sink.must_wait():
                sink.insert(bandit_unroll(None, count=3, sequence=sequences[index], actor=index))
                sequences[index] += 1
        batches += not isinstance(router.take(), str)

    inserted = 3 * sum(sequences)
    assert batches > 200
    assert abs(4 * batches - 0.5 * (inserted - 8)) <= 4 + 0.5 * 2 * 3


def test_a_sink_names_the_shard_that_its_actor_waits_for() -> None:
    shard = make_shard(min_windows=3)
    sink = LocalSink(shard, index=5)

    before = sink.must_wait()
    sink.insert(bandit_unroll(None, count=3))

    assert (before, sink.must_wait()) == ("", "insert credit from replay_server[5]")


class Shifting:
    """Shards that answer late, and may be replaced: the test decides what comes."""

    def __init__(self, num_shards: int = 1) -> None:
        self.num_shards = num_shards
        self.requests: list[SampleRequest] = []
        self.coming: list[tuple[int, SampleReply | None]] = []

    def request(self, shard: int, request: SampleRequest) -> None:
        self.requests.append(request)

    def replies(self) -> list[tuple[int, SampleReply | None]]:
        come, self.coming = self.coming, []
        return come


def empty_reply(inserted: int, origin: int = 0, size: int = 0) -> SampleReply:
    return replace(nothing(0), inserted=inserted, origin=origin, size=size, mass=float(size))


def routed(source: Shifting, takes_over: bool = False) -> Router:
    config = ReplayConfig(samples_per_insert=2.0, min_windows=100, tolerance=64)
    return Router(source, config, np.random.default_rng(0), no_clock, 32, takes_over=takes_over)


def test_what_a_replaced_shard_had_taken_stays_in_the_account() -> None:
    source = Shifting()
    router = routed(source)
    router.take()
    source.coming = [(0, empty_reply(inserted=10_000))]
    router.take()

    source.coming = [(0, None)]  # it died
    router.take()
    source.coming = [(0, empty_reply(inserted=32, origin=1 << 40))]
    router.take()

    assert router.stats()["gauges"]["inserted"] == 10_032
    own_count = source.requests[-1].insert_limit
    assert own_count <= 32 + (10_032 - 10_000) + 132  # in the successor's own count, not in the account's


def test_a_router_that_takes_over_owes_nothing_for_what_was_inserted_before() -> None:
    source = Shifting()
    router = routed(source, takes_over=True)
    router.take()

    source.coming = [(0, empty_reply(inserted=50_000, size=1_000))]
    router.take()

    line = 2.0 * (50_000 - 100)
    assert line <= router.stats()["gauges"]["sampled"] <= line + 2 * 64
    assert source.requests[-1].insert_limit >= 50_000


def test_a_router_that_takes_over_does_not_wait_for_a_dead_shard_and_owes_it_nothing_when_it_returns() -> None:
    source = Shifting(num_shards=2)
    router = routed(source, takes_over=True)
    router.take()

    source.coming = [(0, empty_reply(inserted=50_000, size=1_000)), (1, None)]
    router.take()
    asked = [request.counts for request in source.requests]
    before = router.stats()["gauges"]["sampled"]
    source.coming = [(1, empty_reply(inserted=30_000, size=1_000))]
    router.take()
    after = router.stats()["gauges"]["sampled"]
    source.coming = [(1, empty_reply(inserted=30_500, size=1_000))]
    router.take()

    assert asked[-2:] == [[32], [0]]
    assert before == 2 * (50_000 - 100) + 64  # two batches are on their way
    assert after == before + 2 * 30_000
    assert router.stats()["gauges"]["sampled"] == after  # what came since is owed


def test_a_new_ratio_is_no_debt_for_what_is_past() -> None:
    source = Shifting()
    router = routed(source)
    router.take()
    source.coming = [(0, empty_reply(inserted=5_000))]
    router.take()
    source.coming = [(0, empty_reply(inserted=5_000))]
    kept = router.state()

    config = ReplayConfig(samples_per_insert=8.0, min_windows=100, tolerance=64)
    resumed = Router(Shifting(), config, np.random.default_rng(0), no_clock, 32)
    resumed.restore(kept)

    assert resumed.stats()["gauges"]["sampled"] == 8.0 * (5_000 - 100)


def test_a_shard_that_does_not_answer_is_counted_until_it_does() -> None:
    source = Shifting()
    router = routed(source)
    router.take()

    source.coming = [(0, None)]
    router.take()
    without = router.stats()["gauges"]["degraded_shards"]
    source.coming = [(0, empty_reply(inserted=0))]
    router.take()

    assert (without, router.stats()["gauges"]["degraded_shards"]) == (1, 0)


def account(router: Router) -> tuple[float, ...]:
    gauges = router.stats()["gauges"]
    return tuple(gauges[name] for name in ("inserted", "sampled", "samples_per_insert"))


@pytest.mark.parametrize("shards", [1, 3])
def test_the_account_goes_over_to_another_number_of_shards(shards: int) -> None:
    before = router_of(LocalReplay(bandit_shards(2)), batch_size=8, samples_per_insert=1.0, min_windows=4)
    for _ in range(4):
        before.take()
    kept = before.state()

    router = router_of(LocalReplay(bandit_shards(shards)), batch_size=8, samples_per_insert=1.0, min_windows=4)
    router.restore(kept)

    assert account(router) == account(before) == (12.0, 16.0, 16 / 12)
    batches = [router.take() for _ in range(4)]
    more = len(PRIORITIES)  # that these shards say they have taken since
    assert sum(not isinstance(batch, str) for batch in batches) == more // 8
    assert account(router)[0] == 12 + more


def test_when_the_contents_are_lost_learning_waits_for_as_many_windows_as_at_first() -> None:
    settings = {"batch_size": 8, "samples_per_insert": 1.0, "min_windows": 12}
    before = router_of(LocalReplay(bandit_shards(2)), **settings)
    while not isinstance(before.take(), str):
        pass
    shards = [make_shard(alpha=1.0, min_windows=1), make_shard(alpha=1.0, min_windows=1)]
    router = router_of(LocalReplay(shards), **settings)

    router.restore(before.state())
    router.begin_anew()
    shards[0].insert(bandit_unroll(None, count=5))
    waits = router.take()
    shards[1].insert(bandit_unroll(None, count=7, actor=1))

    assert waits == "learner waits for windows: 5 of 12 inserted"
    assert not isinstance(router.take(), str)
    assert account(router)[0] == 24
    again = router_of(LocalReplay(shards), **settings)
    again.restore(router.state())
    assert account(again) == account(router)


def test_recurrent_states_come_with_their_windows_from_every_shard() -> None:
    worlds = [CountingWorld(np.random.default_rng(i), actor=i, period=1) for i in range(2)]
    shards = [make_shard(Window(length=2), recurrent=True, min_windows=1, shards=2) for _ in worlds]
    sent = {}
    for shard, world in zip(shards, worlds, strict=True):
        unroll = world.unroll(40)
        shard.insert(unroll)
        obs = unroll.columns["obs"].reshape(-1, 2)[unroll.start_at]
        sent |= dict(zip(map(tuple, obs.tolist()), unroll.starts["h"].tolist(), strict=True))

    batch = router_of(LocalReplay(shards), shards=2).take()

    assert isinstance(batch, Sampled)
    assert set(batch.ticket.shards) == {0, 1}
    assert [sent[tuple(obs)] for obs in batch.columns["obs"][0].tolist()] == batch.starts["h"].tolist()
