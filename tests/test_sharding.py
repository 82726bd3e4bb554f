import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_server.sharding import allocate, importance_weights

MASSES = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=9).filter(any)


@given(st.integers(1, 600), MASSES, st.floats(0.0, 1.0, exclude_max=True))
def test_a_split_batch_is_whole_and_no_share_is_off_by_one(batch: int, masses: list[float], u: float) -> None:
    shares = np.array(masses) / np.sum(masses)

    counts = allocate(batch, shares, u)

    assert counts.sum() == batch
    assert (np.abs(counts - batch * shares) < 1 + 1e-9).all()
    assert (counts[shares == 0.0] == 0).all()


def test_each_shard_gets_its_share_in_expectation() -> None:
    shares = np.array([0.61, 0.0, 0.013, 0.377])

    counts = [allocate(10, shares, u) for u in (np.arange(10_000) + 0.5) / 10_000]

    np.testing.assert_allclose(np.mean(counts, axis=0), 10 * shares, atol=1e-3)


def test_with_unchanged_masses_the_weight_is_that_of_one_big_tree() -> None:
    probabilities, beta = np.array([0.25, 0.75]), 0.7

    weights = importance_weights(probabilities, mass=3.0, share=0.3, total_mass=10.0, total_size=8, beta=beta)

    np.testing.assert_allclose(weights, (8 * probabilities * 3.0 / 10.0) ** -beta, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_with_stale_shares_the_expected_update_is_still_that_of_one_big_tree(beta: float) -> None:
    masses = [np.array([1.0, 5.0, 2.0]), np.array([0.5, 0.1])]
    shares = [0.2, 0.8]  # from long ago
    everything = np.concatenate(masses)
    big_tree = everything / everything.sum()

    expected = [
        share * mass / mass.sum()  # the probability with which it is drawn
        * importance_weights(mass / mass.sum(), mass.sum(), share, everything.sum(), len(everything), beta)
        for mass, share in zip(masses, shares, strict=True)
    ]  # fmt: skip

    np.testing.assert_allclose(np.concatenate(expected), big_tree * (5 * big_tree) ** -beta, rtol=1e-9)
