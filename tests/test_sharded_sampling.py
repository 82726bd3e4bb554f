"""Many shards sample as one big tree: distributions by chi-squared over 20 seeds, weights to nine digits.

Both halves of a draw are tested by what they are: how many windows come from which shard (systematic rounding, with
less variance than independent draws), and which ones (independent draws within a shard).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import erfc, exp, gamma, log, sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from replay_server.config import ReplayConfig
from replay_server.local import LocalReplay
from replay_server.router import Router
from replay_server.shard import ReplayShard
from replay_server.sharding import allocate, importance_weights
from starling.metrics import no_clock
from starling.types import Sampled, SampleReply, SampleRequest
from tests.replay_worlds import bandit_shard, bandit_unroll, draw

Floats = NDArray[np.float64]

PRIORITIES = [0.5, 4.0, 1.0, 2.0, 0.125, 0.25, 0.375, 7.0, 1.5, 3.0, 3.0, 0.875]
SEEDS, BATCHES, BATCH = 20, 40, 101
BETA = 0.4
REJECTED, TOO_GOOD = 1e-3, 1.0 - 1e-3


def spread(num_shards: int) -> list[Floats]:
    """Give the first shard half of the windows, the next one half of the rest, and so on."""
    edges = [*(len(PRIORITIES) - (len(PRIORITIES) >> shard) for shard in range(num_shards)), len(PRIORITIES)]
    return [np.array(PRIORITIES[start:stop]) for start, stop in pairwise(edges)]


def chi_squared_survival(value: float, freedom: int) -> float:
    """Return how often chance alone gives a larger value: Q(freedom / 2, value / 2), by its recurrence."""
    x, a = value / 2.0, 0.5 if freedom % 2 else 1.0
    tail = erfc(sqrt(x)) if freedom % 2 else exp(-x)
    while a < freedom / 2.0:
        tail += x**a * exp(-x) / gamma(a + 1.0)
        a += 1.0
    return tail


def normal_survival(z: float) -> float:
    return erfc(abs(z) / sqrt(2.0))


def combined(p_values: Sequence[float]) -> float:
    """Return Fisher's p-value of independent ones."""
    return chi_squared_survival(-2.0 * sum(log(max(p, 1e-12)) for p in p_values), 2 * len(p_values))


@dataclass
class Round:
    """One draw as the router saw it: the shares that it asked by, the replies, and the batch that it made of them."""

    shares: Floats
    replies: dict[int, SampleReply]
    batch: Sampled | None = None

    def weights(self, corrected: bool = True) -> Floats:
        """Return the weights before they are normalised, in the order of the batch."""
        mass = sum(reply.mass for reply in self.replies.values())
        size = sum(reply.size for reply in self.replies.values())
        parts = []
        for shard, reply in sorted(self.replies.items()):
            share = float(self.shares[shard]) if corrected else reply.mass / mass
            parts.append(importance_weights(reply.probabilities, reply.mass, share, mass, size, BETA))
        return np.concatenate(parts)

    def windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the windows by shard and number."""
        assert self.batch is not None
        shard, number = self.batch.columns["obs"][0].astype(np.int64).T
        return shard, number - 1


@dataclass
class Watched:
    """Shards in this process; `meanwhile` happens between a request and its answers, and some shards are missing."""

    shards: list[ReplayShard]
    missing: frozenset[int] = frozenset()
    meanwhile: Callable[[], None] = lambda: None
    claims: Callable[[SampleReply], SampleReply] = lambda reply: reply
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._local = LocalReplay(self.shards)
        self._asked: list[tuple[int, SampleRequest]] = []
        self._masses = np.zeros(len(self.shards))

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def request(self, shard: int, request: SampleRequest) -> None:
        self._asked.append((shard, request))

    def replies(self) -> list[tuple[int, SampleReply | None]]:
        asked, self._asked = self._asked, []
        if not asked:
            return []
        self.meanwhile()
        for shard, request in asked:
            if shard not in self.missing:
                self._local.request(shard, request)
        answers = {shard: self.claims(reply) for shard, reply in self._local.replies() if reply is not None}
        if self._masses.any():
            self.rounds.append(Round(self._masses / self._masses.sum(), answers))
        self._masses = np.array([answers[shard].mass if shard in answers else 0.0 for shard in range(self.num_shards)])
        return [(shard, answers.get(shard)) for shard, _ in asked]


def watched(num_shards: int, seed: int, **fields: Any) -> Watched:
    parts = enumerate(spread(num_shards))
    return Watched(
        [bandit_shard(part.tolist(), actor=shard, seed=97 * seed + shard) for shard, part in parts], **fields
    )


def rounds_of(source: Watched, seed: int, batches: int = BATCHES) -> list[Round]:
    """Let a router draw batches, and return how each of them came about."""
    config = ReplayConfig(min_windows=1, samples_per_insert=0.0, beta=BETA, beta_final=BETA)
    router = Router(source, config, np.random.default_rng(seed), no_clock, BATCH, depth=1)
    for _ in range(batches):
        batch = router.take()
        assert not isinstance(batch, str), batch
        source.rounds[-1].batch = batch
    return source.rounds


def p_values(rounds: Sequence[Round], parts: Sequence[Floats]) -> list[float]:
    """Return the p-values of which windows were drawn from each shard, and of how many from which."""
    counts = [np.zeros(len(part)) for part in parts]
    for round_ in rounds:
        shards, numbers = round_.windows()
        for shard, count in enumerate(counts):
            count += np.bincount(numbers[shards == shard], minlength=len(count))
    masses = np.array([part.sum() for part in parts])
    expected = [
        count.sum() * part / part.sum() if part.any() else part for count, part in zip(counts, parts, strict=True)
    ]
    alive = [(c[e > 0], e[e > 0]) for c, e in zip(counts, expected, strict=True) if e.any()]
    within = sum(float(((c - e) ** 2 / e).sum()) for c, e in alive)
    found = [chi_squared_survival(within, sum(len(e) - 1 for _, e in alive))]
    if np.count_nonzero(masses) > 1:
        found.append(between([count.sum() for count in counts], masses / masses.sum(), len(rounds)))
    return found


def between(counts: Sequence[float], shares: Floats, rounds: int) -> float:
    """Return the p-value of a sum over shards, whose mean and variance follow from the rounding of one batch."""
    coefficients = np.sqrt(np.arange(len(shares)) + 1.0)
    possible = np.array([coefficients @ allocate(BATCH, shares, u) for u in (np.arange(2_000) + 0.5) / 2_000])
    mean = BATCH * float(coefficients @ shares)
    return normal_survival((float(coefficients @ np.array(counts)) - rounds * mean) / (sqrt(rounds) * possible.std()))


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_many_shards_sample_as_one_big_tree(num_shards: int) -> None:
    found = [
        p for seed in range(SEEDS) for p in p_values(rounds_of(watched(num_shards, seed), seed), spread(num_shards))
    ]

    print(f"{num_shards} shards: p = {combined(found):.3f}")
    assert REJECTED < combined(found) < TOO_GOOD


@pytest.mark.parametrize("num_shards", [2, 4])
def test_equal_shares_are_rejected(num_shards: int) -> None:
    def flattened(reply: SampleReply) -> SampleReply:
        return replace(reply, mass=1.0)

    sources = [watched(num_shards, seed, claims=flattened) for seed in range(3)]
    found = [p for seed, source in enumerate(sources) for p in p_values(rounds_of(source, seed), spread(num_shards))]

    print(f"{num_shards} shards, equal shares: p = {combined(found):.1e}")
    assert combined(found) < 1e-9


def test_a_tree_that_draws_with_a_bias_is_rejected() -> None:
    slanted = [part * np.linspace(1.0, 1.2, len(part)) for part in spread(2)]

    found = [p for seed in range(SEEDS) for p in p_values(rounds_of(watched(2, seed), seed), slanted)]

    assert combined(found) < 1e-9


def test_while_a_shard_is_missing_the_others_sample_as_one_big_tree() -> None:
    left = [np.zeros_like(part) if shard == 1 else part for shard, part in enumerate(spread(4))]

    found = []
    for seed in range(SEEDS):
        rounds = rounds_of(watched(4, seed, missing=frozenset([1])), seed)
        assert not any((round_.windows()[0] == 1).any() for round_ in rounds)
        found += p_values(rounds, left)

    print(f"3 of 4 shards: p = {combined(found):.3f}")
    assert REJECTED < combined(found) < TOO_GOOD


@pytest.mark.parametrize("missing", [frozenset[int](), frozenset([1])], ids=["all", "one missing"])
@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_weights_are_those_of_one_big_tree_of_what_is_there(num_shards: int, missing: frozenset[int]) -> None:
    parts = [part for shard, part in enumerate(spread(num_shards)) if shard not in missing]
    masses, size = sum(part.sum() for part in parts), sum(map(len, parts))

    (round_, *_) = rounds_of(watched(num_shards, 0, missing=missing), 0, batches=1)

    priority = np.array([spread(num_shards)[shard][number] for shard, number in zip(*round_.windows(), strict=True)])
    np.testing.assert_allclose(round_.weights(), (size * priority / masses) ** -BETA, rtol=1e-9)
    assert_served_with(round_)


def assert_served_with(round_: Round) -> None:
    """Check that the learner got these very weights, over their largest."""
    assert round_.batch is not None
    weights = round_.weights()
    np.testing.assert_array_equal(round_.batch.weights, (weights / weights.max()).astype(np.float32))


class Meanwhile:
    """Inserts windows and changes priorities, and knows at each moment what one big tree would hold."""

    def __init__(self, shards: list[ReplayShard], seed: int) -> None:
        self._shards = shards
        self._rng = np.random.default_rng(1_000 + seed)
        self.priorities = {(s, n): p for s, part in enumerate(spread(len(shards))) for n, p in enumerate(part.tolist())}
        self._keys = [draw(shard, 400) for shard in shards]
        self._inserted = [0] * len(shards)
        self.history: list[dict[tuple[int, int], float]] = []

    def __call__(self) -> None:
        shard = int(self._rng.integers(len(self._shards)))
        self._insert(shard, float(self._rng.choice([0.25, 1.0, 8.0])))
        self._change(int(self._rng.integers(len(self._shards))), float(self._rng.choice([0.5, 2.0, 16.0])))
        self.history.append(dict(self.priorities))

    def _insert(self, shard: int, priority: float) -> None:
        self._inserted[shard] += 1
        unroll = bandit_unroll([priority], sequence=self._inserted[shard], actor=shard)
        number = len(spread(len(self._shards))[shard]) + self._inserted[shard]
        unroll.columns["obs"][0, 0, 1] = number
        self._shards[shard].insert(unroll)
        self.priorities[shard, number - 1] = priority

    def _change(self, shard: int, priority: float) -> None:
        known = self._keys[shard]
        draw(self._shards[shard], keys=[int(known.keys[0])], priorities=[priority])
        self.priorities[shard, int(known.columns["obs"][0, 0, 1]) - 1] = priority


def concurrent(num_shards: int, seed: int) -> tuple[list[Round], list[dict[tuple[int, int], float]]]:
    """Draw batches while windows come and priorities change between each request and its answers."""
    source = watched(num_shards, seed)
    source.meanwhile = meanwhile = Meanwhile(source.shards, seed)
    rounds = rounds_of(source, seed, batches=100)
    return rounds, meanwhile.history[-len(rounds) :]


def update_p_value(rounds: Sequence[Round], history: Sequence[Any], seed: int, corrected: bool = True) -> float:
    """Return the p-value of a weighted sum over what was drawn, against that of one big tree at the same moments.

    Shards that were asked for too little count positive, the others negative: so nothing cancels out.
    """
    gradient = np.random.default_rng(seed).uniform(0.5, 1.5, (4, 1_000))  # of each window, by shard and number
    surplus = []
    for round_, priorities in zip(rounds, history, strict=True):
        masses = np.array([round_.replies[shard].mass for shard in range(4)])
        signed = gradient * np.sign(masses / masses.sum() - round_.shares)[:, None]
        p = np.array(list(priorities.values())) / sum(priorities.values())
        there = signed[tuple(np.array(list(priorities)).T)]
        got = signed[round_.windows()] @ round_.weights(corrected)
        surplus.append(float(got - BATCH * (there * p * (len(p) * p) ** -BETA).sum()))
    return normal_survival(sum(surplus) / sqrt(sum(s * s for s in surplus)))


def test_whatever_happens_between_request_and_answer_the_update_is_that_of_one_big_tree() -> None:
    found, uncorrected = [], []
    for seed in range(SEEDS):
        rounds, history = concurrent(4, seed)
        found.append(update_p_value(rounds, history, seed))
        uncorrected.append(update_p_value(rounds, history, seed, corrected=False))

    print(f"concurrent: p = {combined(found):.3f}, without the correction {combined(uncorrected):.1e}")
    assert REJECTED < combined(found) < TOO_GOOD
    assert combined(uncorrected) < REJECTED


def test_whatever_happens_between_request_and_answer_weights_match_the_allocation_that_was_used() -> None:
    rounds, history = concurrent(4, 0)

    assert len({tuple(round_.shares) for round_ in rounds}) > 50
    for round_, priorities in zip(rounds, history, strict=True):
        total = sum(priorities.values())
        of_shard = [sum(p for (s, _), p in priorities.items() if s == shard) for shard in range(4)]
        shard, number = round_.windows()
        priority = np.array([priorities[window] for window in zip(shard.tolist(), number.tolist(), strict=True)])
        effective = round_.shares[shard] * priority / np.array(of_shard)[shard]
        big_tree = priority / total
        weights = (len(priorities) * big_tree) ** -BETA * big_tree / effective
        np.testing.assert_allclose(round_.weights(), weights, rtol=1e-9)
        assert_served_with(round_)
