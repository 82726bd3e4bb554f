import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_server.sum_tree import MOST_CHANGED, SumTree

MASSES = st.lists(
    st.one_of(st.just(0.0), st.floats(0.0, 1e30), st.floats(0.0, 1e-300), st.sampled_from([5e-324, 1e-12, 1.0, 1e30])),
    min_size=1,
    max_size=150,
)
WHOLE = st.lists(st.integers(0, 1000), min_size=1, max_size=150)


def tree_of(masses: list[float], top: int = 2) -> SumTree:
    """Return a tree with as many levels as there can be, unless told otherwise."""
    tree = SumTree(len(masses), top)
    tree.set(np.arange(len(masses)), np.array(masses, np.float64))
    return tree


@given(WHOLE, st.sampled_from([2, 4, 100]), st.data())
def test_the_leaf_found_is_that_of_a_linear_scan(masses: list[float], top: int, data: st.DataObject) -> None:
    tree = tree_of(masses, top)
    total = int(sum(masses))
    if not total:
        return
    numbers = data.draw(st.lists(st.integers(0, total - 1), min_size=1))

    found = tree.find(np.array(numbers, np.float64))

    for number, leaf in zip(numbers, found, strict=True):
        assert leaf == next(i for i in range(len(masses)) if number < sum(masses[: i + 1]))


@given(st.lists(WHOLE, min_size=1), st.integers(0, 39), st.integers(0, 40))
def test_leaves_that_are_cleared_have_no_mass_whenever_they_are_added_up(
    given: list[list[int]], begin: int, count: int
) -> None:
    tree, masses = SumTree(5_000, top=8), np.zeros(5_000)
    for number, some in enumerate(given):
        first = number * 97
        masses[first : first + len(some)] = some
        tree.set(np.arange(first, first + len(some)), np.array(some, np.float64))
        begin, end = first + begin % len(some), first + len(some) + count
        had = np.count_nonzero(masses[begin:end])
        masses[begin:end] = 0.0

        assert tree.clear(begin, end) == had
        if number % 2:
            assert tree.total == masses.sum()

    assert tree.total == masses.sum()
    np.testing.assert_array_equal(tree.leaves, masses)


@given(MASSES, st.lists(st.floats(0.0, 1.0), min_size=1))
def test_a_leaf_without_mass_is_never_found(masses: list[float], fractions: list[float]) -> None:
    tree = tree_of(masses)
    edges = np.cumsum(masses)
    if not tree.total:
        return
    numbers = [*(np.array(fractions) * tree.total), *edges, *np.nextafter(edges, 0.0), np.nextafter(tree.total, np.inf)]

    found = tree.find(np.array(numbers))

    assert (found < len(masses)).all()
    assert (tree.get(found) > 0.0).all()


@given(MASSES, st.lists(st.tuples(st.integers(0, 149), st.sampled_from([0.0, 1e-9, 1.0, 1e30])), max_size=60))
def test_however_it_came_about_a_tree_is_one_built_at_once(
    masses: list[float], changes: list[tuple[int, float]]
) -> None:
    changes = [(leaf % len(masses), mass) for leaf, mass in changes]
    tree = tree_of(masses)
    expected = list(masses)

    for chunk in (changes[:7], changes[7:]):  # leaves given twice among them
        tree.set(np.array([leaf for leaf, _ in chunk], np.int64), np.array([mass for _, mass in chunk]))
    for leaf, mass in changes:
        expected[leaf] = mass

    assert tree.total == tree_of(expected).total
    np.testing.assert_array_equal(tree.get(np.arange(len(masses))), expected)


def test_a_million_changes_leave_no_drift() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(64)
    for _ in range(500):
        tree.set(rng.integers(64, size=2000), 10.0 ** rng.uniform(-12, 12, 2000))

    tree.set(np.arange(64), np.zeros(64))

    assert tree.total == 0.0


@pytest.mark.parametrize("leaves", [1, 2, 3, 64, 65])
def test_leaves_are_drawn_in_proportion_to_their_mass(leaves: int) -> None:
    tree = tree_of([float(i) for i in range(1, leaves + 1)])

    found = tree.find((np.arange(100_000) + 0.5) / 100_000 * tree.total)

    expected = np.arange(1, leaves + 1) / tree.total
    np.testing.assert_allclose(np.bincount(found) / 100_000, expected, atol=2e-5)


def test_a_tree_that_nobody_draws_from_adds_up_what_changed_before_it_becomes_too_much() -> None:
    tree, rng = SumTree(10_000), np.random.default_rng(0)
    for _ in range(MOST_CHANGED // 5_000 + 3):
        leaves = rng.integers(0, 10_000, 5_000)
        tree.set(leaves, rng.random(5_000))

    assert tree.pending <= MOST_CHANGED
    assert tree.total == pytest.approx(tree.leaves.sum())
    assert tree.pending == 0
