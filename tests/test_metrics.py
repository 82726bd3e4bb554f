"""Meters: shares that sum to 1, counters that only grow, histograms by powers of two."""

import json
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.metrics import NUM_BINS, Meter, no_clock, quantile
from tests.watch import Watch


@given(st.lists(st.tuples(st.sampled_from(["acting", "stepping", "idle"]), st.floats(0.0, 100.0))))
def test_the_time_in_all_states_is_the_time_that_went_by(turns: list[tuple[str, float]]) -> None:
    clock = Watch(50.0)
    meter = Meter(clock)

    for state, seconds in turns:
        meter.enter(state)
        clock.now_s += seconds

    time_s = meter.snapshot()["time_s"]
    assert sum(time_s.values()) == pytest.approx(clock.now_s - 50.0)
    for state in ("acting", "stepping"):
        assert time_s.get(state, 0.0) == pytest.approx(sum(s for name, s in turns if name == state))


def test_a_snapshot_counts_the_state_that_goes_on_and_changes_nothing() -> None:
    clock = Watch()
    meter = Meter(clock, "waiting")

    clock.now_s = 3.0

    assert meter.snapshot()["time_s"] == {"waiting": 3.0}
    assert meter.snapshot()["time_s"] == {"waiting": 3.0}


def test_a_snapshot_is_not_written_to_later() -> None:
    meter = Meter(no_clock)
    meter.count("unrolls")
    meter.observe("lag", [1])

    before = meter.snapshot()
    meter.count("unrolls", 5)
    meter.observe("lag", [1])
    meter.gauge("version", 2)

    assert before["counts"] == {"unrolls": 1}
    assert sum(before["histograms"]["lag"]) == 1
    assert before["gauges"] == {}
    assert meter.snapshot()["counts"] == {"unrolls": 6}


def test_a_snapshot_is_plain_enough_for_json() -> None:
    meter = Meter(no_clock)
    meter.gauge("loss", np.float32(0.5))
    meter.observe("lag", np.array([[0, 1], [2, 3]]))

    assert json.loads(json.dumps(meter.snapshot())) == meter.snapshot()


@given(st.lists(st.integers(-3, 2**30), min_size=1))
def test_a_value_falls_into_the_bin_of_its_power_of_two(values: list[int]) -> None:
    meter = Meter(no_clock)

    meter.observe("lag", values)

    expected = [0] * NUM_BINS
    for value in values:
        expected[min(max(value, 0).bit_length(), NUM_BINS - 1)] += 1
    assert meter.snapshot()["histograms"]["lag"] == expected


@given(st.lists(st.integers(0, 2**20), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_the_lower_edge_of_the_bin_that_holds_it(values: list[int], q: float) -> None:
    meter = Meter(no_clock)
    meter.observe("lag", values)

    found = quantile(meter.snapshot()["histograms"]["lag"], q)

    true = sorted(values)[int(np.ceil(q * len(values))) - 1]
    assert found == (2 ** (true.bit_length() - 1) if true else 0)


def test_the_quantile_of_nothing_is_not_a_number() -> None:
    assert isnan(quantile([0] * NUM_BINS, 0.5))
