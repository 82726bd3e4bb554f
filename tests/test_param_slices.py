"""Slices of the parameters: each gradient once, the same bits for any number of slices, and never backwards."""

from dataclasses import replace
from itertools import product
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from param_server.config import OptimizerKind, SliceConfig
from param_server.local import LocalSlices, LocalValues, make_slices
from param_server.optimizers import KINDS
from param_server.slices import ParamSlice, cut, parts
from param_server.writers import WINDOW, Writers
from starling.codec import encode
from starling.errors import CodecError, ConfigError, RunError
from starling.gradient_wire import decode_push, decode_pushed, encode_push, encode_pushed
from starling.gradients import Gradient, Push, Pushed, Versions, clip_factor
from starling.metrics import no_clock
from starling.state import pack_state, unpack_state

SIZE = 37
PLAIN = SliceConfig(optimizer="sgd", learning_rate=1.0)  # each applied gradient is subtracted


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def a_push(step: int = 0, gradient: float = 1.0, **changes: Any) -> Push:
    given: dict[str, Any] = {"worker": 0, "generation": 0, "version": 0, "env_steps": 10, "norm": abs(gradient)}
    return Push(step=step, gradient=vector(gradient), **given | changes)


def a_slice(config: SliceConfig = PLAIN) -> ParamSlice:
    return ParamSlice(config, vector(0.0), no_clock)


def whole(config: SliceConfig) -> LocalSlices:
    return LocalSlices(make_slices(config, np.random.default_rng(0).normal(size=SIZE).astype(np.float32), no_clock))


def versions_and_values(sink: LocalSlices) -> tuple[Versions, NDArray[np.float32]]:
    fetched = sink.fetch(())
    assert fetched is not None
    return fetched


def late_gradients(sink: LocalSlices, steps: int = 60) -> None:
    """Push gradients of three workers, computed from versions up to eight behind, some of them not finite."""
    rng = np.random.default_rng(5)
    seen = [versions_and_values(sink)[0]]
    for step in range(steps):
        values = rng.normal(size=SIZE).astype(np.float32)
        if step % 11 == 7:
            values[rng.integers(SIZE)] = nan
        sink.push(
            Gradient(
                worker=step % 3,
                generation=0,
                step=step,
                versions=seen[-1 - int(rng.integers(min(8, len(seen))))],
                values=values,
                norm=float(np.linalg.norm(values)),
                env_steps=20,
            )
        )
        seen.append(versions_and_values(sink)[0])


def test_a_push_is_answered_with_the_slice_that_it_moved() -> None:
    pushed = a_slice().push(a_push(gradient=3.0))

    assert (pushed.version, pushed.values.tolist(), pushed.applied, pushed.why) == (1, [-3.0], True, "")
    assert not pushed.values.flags.writeable


def test_a_repeated_push_moves_nothing_and_still_gets_fresh_values() -> None:
    slice_ = a_slice()
    slice_.push(a_push(step=4))

    pushed = slice_.push(a_push(step=4))

    assert (pushed.version, pushed.values.tolist(), pushed.applied, pushed.why) == (1, [-1.0], False, "repeated")
    assert slice_.stats()["counts"] == {"pushes_applied": 1, "pushes_repeated": 1}


def test_pushes_that_overtake_each_other_count_once_each() -> None:
    slice_ = a_slice()

    applied = [slice_.push(a_push(step=step)).applied for step in (0, 3, 1, 1, 2, 3, 0)]

    assert applied == [True, True, True, False, True, False, False]


def test_a_worker_that_was_replaced_is_fenced_off() -> None:
    slice_ = a_slice()
    slice_.push(a_push(step=7, generation=0))
    slice_.push(a_push(step=0, generation=1))

    pushed = slice_.push(a_push(step=8, generation=0))

    assert (pushed.applied, pushed.why) == (False, "fenced")
    assert slice_.push(a_push(step=8, worker=1)).applied


@pytest.mark.parametrize("push", [a_push(gradient=nan), a_push(gradient=inf), a_push(norm=nan), a_push(norm=inf)])
def test_what_is_not_finite_moves_nothing(push: Push) -> None:
    slice_ = a_slice()

    pushed = slice_.push(push)

    assert (pushed.version, pushed.values.tolist(), pushed.why) == (0, [0.0], "not finite")
    assert slice_.push(push).why == "repeated"


def test_late_gradients_are_applied_damped_or_dropped() -> None:
    def values_after(config: SliceConfig) -> list[float]:
        slice_ = a_slice(config)
        return [slice_.push(a_push(step, version=version)).values.item() for step, version in enumerate((0, 0, 1, 0))]

    assert values_after(PLAIN) == [-1.0, -2.0, -3.0, -4.0]
    assert values_after(replace(PLAIN, staleness="damp")) == pytest.approx([-1.0, -1.5, -2.0, -2.25])
    assert values_after(replace(PLAIN, staleness="drop", max_lag=1)) == [-1.0, -2.0, -3.0, -3.0]


def test_damping_holds_for_optimizers_that_do_not_see_a_gradients_scale() -> None:
    config = SliceConfig(optimizer="adam", staleness="damp")
    slice_ = a_slice(config)
    slice_.begin_above(2)

    first = slice_.push(a_push(version=0)).values.item()

    assert first == pytest.approx(-config.learning_rate / 4)


def test_every_judged_gradients_lag_is_in_the_histogram() -> None:
    slice_ = a_slice(replace(PLAIN, staleness="drop", max_lag=1))

    for step in range(4):
        slice_.push(a_push(step, version=0))

    assert slice_.stats()["histograms"]["lag"][:4] == [1, 1, 2, 0]
    assert slice_.stats()["counts"] == {"pushes_applied": 2, "pushes_stale": 2}


def test_the_learning_rate_falls_with_the_env_steps_of_every_gradient_heard() -> None:
    slice_ = a_slice(replace(PLAIN, anneal_env_steps=40, staleness="drop", max_lag=0))
    slice_.push(a_push(0))  # at 1
    slice_.push(a_push(1, version=0))  # too stale, and the steps were played all the same
    slice_.push(a_push(1))  # repeated: these were not
    slice_.push(a_push(2, gradient=nan, version=1))

    values = [slice_.push(a_push(step, version=slice_.version)).values.item() for step in (3, 4)]

    assert values == [-1.25, -1.25]
    assert slice_.stats()["gauges"] == {"version": 3.0, "env_steps": 50.0, "learning_rate": 0.0}


def test_only_newer_values_are_fetched() -> None:
    slice_ = a_slice()
    slice_.push(a_push(gradient=2.0))

    fetched = slice_.fetch(newer_than=0)

    assert fetched is not None
    assert (fetched[0], fetched[1].tolist()) == (1, [-2.0])
    assert slice_.fetch(newer_than=1) is None


@pytest.mark.parametrize(("size", "slices"), [(1, 1), (7, 7), (10, 3), (1_686_180, 4)])
def test_slices_lie_behind_one_another_and_differ_by_one_value(size: int, slices: int) -> None:
    cuts = cut(size, slices)

    assert np.concatenate([np.arange(size)[span] for span in cuts]).tolist() == list(range(size))
    assert max(lengths := [span.stop - span.start for span in cuts]) - min(lengths) <= 1
    assert len(cuts) == slices


def test_more_slices_than_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"params.slices must be between 1 and 3 \(parameters\), got 4"):
        cut(3, 4)


STALENESS: list[dict[str, Any]] = [{}, {"staleness": "damp"}, {"staleness": "drop", "max_lag": 3}]


@pytest.mark.parametrize(("kind", "policy"), list(product(KINDS, STALENESS)))
def test_the_number_of_slices_changes_no_bit(kind: OptimizerKind, policy: dict[str, Any]) -> None:
    config = SliceConfig(optimizer=kind, momentum=0.5, anneal_env_steps=2_000, **policy)
    sinks = [whole(replace(config, slices=slices)) for slices in (1, 2, 4)]

    for sink in sinks:
        late_gradients(sink)

    ((version,), values), *others = map(versions_and_values, sinks)
    assert version == 55 if config.staleness != "drop" else 10 < version < 55
    for versions, others_values in others:
        assert set(versions) == {version}
        np.testing.assert_array_equal(others_values, values)


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_a_gradient_clipped_before_the_cut_is_clipped_as_a_whole(slices: int) -> None:
    gradient = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
    norm = float(np.linalg.norm(gradient))
    sink = whole(replace(PLAIN, slices=slices))
    _, before = versions_and_values(sink)

    clipped = gradient * np.float32(clip_factor(norm, 0.5))
    sink.push(Gradient(worker=0, generation=0, step=0, versions=(0,) * slices, values=clipped, norm=norm, env_steps=1))

    _, after = versions_and_values(sink)
    np.testing.assert_allclose(before - after, gradient * 0.5 / norm, atol=1e-6)
    assert np.linalg.norm(before - after) == pytest.approx(0.5, abs=1e-6)


def test_only_a_longer_gradient_is_clipped() -> None:
    assert clip_factor(80.0, 40.0) == 0.5
    assert clip_factor(40.0, 40.0) == 1.0
    assert clip_factor(1e9, 0.0) == 1.0
    assert clip_factor(0.0, 40.0) == 1.0
    assert [clip_factor(norm, 40.0) for norm in (inf, nan)] == [1.0, 1.0]


def test_a_sink_has_nothing_newer_until_a_gradient_was_applied() -> None:
    sink = whole(replace(PLAIN, slices=2))
    versions, _ = versions_and_values(sink)

    assert sink.fetch(versions) is None
    late_gradients(sink, steps=1)
    fetched = sink.fetch(versions)

    assert fetched is not None
    assert fetched[0] == (1, 1)


def test_what_was_fetched_does_not_change_any_more() -> None:
    sink = whole(PLAIN)
    _, values = versions_and_values(sink)
    kept = values.copy()

    late_gradients(sink, steps=3)

    np.testing.assert_array_equal(values, kept)


def test_a_readers_version_is_that_of_the_slice_furthest_behind() -> None:
    slices = [a_slice(), a_slice()]
    reader = LocalValues(slices)
    slices[0].push(a_push())

    assert reader.fetch(newer_than=0) is None
    slices[1].push(a_push(gradient=2.0))
    fetched = reader.fetch(newer_than=0)

    assert fetched is not None
    assert (fetched[0], fetched[1].tolist()) == (1, [-1.0, -2.0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_slice_goes_on_bit_for_bit(kind: OptimizerKind) -> None:
    config = SliceConfig(optimizer=kind, momentum=0.9, anneal_env_steps=10_000, staleness="damp")
    first = a_slice(config)
    for step in range(9):
        first.push(a_push(step, gradient=step - 3.0))
    state = pack_state(first.state())
    first.push(a_push(20))

    second = a_slice(config)
    second.restore(unpack_state(state))

    assert second.push(a_push(7)).why == "repeated"
    pushed = second.push(a_push(20))
    assert (pushed.version, pushed.values.item()) == (first.version, first.values.item())


def test_versions_never_go_back() -> None:
    slice_, state = a_slice(), a_slice().state()
    for step in range(5):
        slice_.push(a_push(step))

    slice_.restore(state)
    assert slice_.version == 5
    slice_.begin_above(9)
    assert slice_.push(a_push(9)).version == 11
    slice_.begin_above(3)
    assert slice_.version == 11


def test_a_slice_of_another_size_is_refused() -> None:
    with pytest.raises(RunError, match="size of a slice of the checkpoint must be 1, as the settings say, got 2"):
        a_slice().restore(ParamSlice(PLAIN, vector(0.0, 0.0), no_clock).state())


def test_a_push_that_does_not_fit_changes_nothing() -> None:
    slice_ = a_slice()

    with pytest.raises(AssertionError, match="must fit"):
        slice_.push(replace(a_push(), gradient=vector(1.0, 2.0)))

    assert slice_.push(a_push()).applied


Sent = tuple[int, int, int, int, bool]  # worker, generation, step, gradient, whether it is finite
SENT = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6), st.integers(-8, 8), st.booleans())


@settings(max_examples=150)
@given(st.lists(SENT, max_size=60), st.sampled_from([1, 2, 4]))
def test_each_gradient_counts_once_whatever_the_order_in_which_it_comes(sent: list[Sent], slices: int) -> None:
    made = make_slices(replace(PLAIN, slices=slices), np.zeros(4, np.float32), no_clock)
    sink = LocalSlices(made)
    generations: dict[int, int] = {}
    heard: dict[tuple[int, int, int], int] = {}

    for worker, generation, step, gradient, finite in sent:
        norm = float(2 * abs(gradient)) if finite else nan
        values = np.full(4, gradient, np.float32)
        given = {"worker": worker, "generation": generation, "step": step, "norm": norm, "env_steps": 1}
        sink.push(Gradient(versions=(0,) * slices, values=values, **given))  # type: ignore[arg-type]
        if generation >= generations.get(worker, 0):
            generations[worker] = generation
            heard.setdefault((worker, generation, step), gradient if finite else 0)

    versions, values = versions_and_values(sink)
    assert values.tolist() == [-sum(heard.values())] * 4
    assert len(set(versions)) == 1
    assert {slice_.stats()["gauges"]["env_steps"] for slice_ in made} == {len(heard)}


def test_a_step_far_behind_its_workers_newest_is_taken_for_a_repeated_one() -> None:
    writers = Writers()
    writers.hear(0, 0, 1_000)

    assert writers.hear(0, 0, 1_000 - WINDOW + 1) == ""
    assert writers.hear(0, 0, 1_000 - WINDOW) == "repeated"
    assert writers.hear(0, 0, 1 << 60) == ""
    assert writers.hear(0, 0, 1_000) == "repeated"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 100)), max_size=40))
def test_who_was_heard_survives_in_a_table(heard: list[tuple[int, int, int]]) -> None:
    first, second = Writers(), Writers()
    for it in heard:
        first.hear(*it)

    second.restore(first.table())

    assert [second.hear(*it) for it in [*heard, (0, 2, 50)]] == [first.hear(*it) for it in [*heard, (0, 2, 50)]]


@pytest.mark.parametrize("sent", [a_push(), a_push(norm=nan, generation=1 << 40), a_push(gradient=inf)])
def test_a_push_arrives_as_it_was_sent(sent: Push) -> None:
    buffer = encode_push(sent)

    got = decode_push(buffer)

    assert repr(got) == repr(sent)
    assert np.shares_memory(got.gradient, buffer)


def test_an_answer_arrives_as_it_was_sent() -> None:
    for sent in (a_slice().push(a_push()), Pushed(version=3, values=vector(1.0), applied=False, why="stale")):
        assert repr(decode_pushed(encode_pushed(sent))) == repr(sent)


@pytest.mark.parametrize(
    "buffer",
    [
        encode({}),
        encode({"gradient": np.zeros(2), "values": np.zeros(2)}, {"push": [0, 0, 0, 0], "norm": 1.0, "env_steps": 1}),
        encode({"gradient": vector(0.0)}, {"push": [0, 0, 0], "norm": 1.0, "env_steps": 1}),
        encode({"gradient": vector(0.0)}, {"push": [0, 0, 0, 0], "norm": "1", "env_steps": 1}),
        encode({"values": vector(0.0)}, {"version": 1, "why": "tired"}),
        encode({"values": np.zeros((1, 1), np.float32)}, {"version": 1, "why": ""}),
    ],
)
def test_what_is_no_push_or_answer_is_refused(buffer: NDArray[np.uint8]) -> None:
    with pytest.raises(CodecError, match="must hold a push"):
        decode_push(buffer)
    with pytest.raises(CodecError, match="must hold the answer to a push"):
        decode_pushed(buffer)


def test_each_slice_gets_its_part_and_its_own_version() -> None:
    gradient = Gradient(
        worker=1, generation=2, step=3, versions=(4, 5), values=vector(1.0, 2.0, 3.0), norm=9.0, env_steps=6
    )

    first, second = parts(gradient, cut(3, 2))

    assert (first.version, first.gradient.tolist()) == (4, [1.0])
    assert (second.version, second.gradient.tolist()) == (5, [2.0, 3.0])
    assert (second.worker, second.generation, second.step, second.norm, second.env_steps) == (1, 2, 3, 9.0, 6)
