"""Every benchmark gives its figures, well formed; how large they are is for people and baselines."""

import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from cluster.bench.figure import TURNS, WINDOWS, Figure, rate, rates, typical_s
from cluster.bench.neighbours import Taker
from cluster.bench.process import BENCHES, benches_for, run_bench, stem
from cluster.bench.train import Sample, allowed, speeds
from cluster.cli import main
from cluster.commands.bench import readable, regressions
from cluster.config import QueueRun, load
from cluster.roles import steps_per_update
from starling.config import Layer
from starling.errors import RoleError
from starling.metrics import no_clock
from tests.unrolls import unroll_of

EXPECTED = {
    "actors": ["actors.efficiency.gridworld"],
    "learner": ["learner.efficiency.gridworld"],
    "replay": [
        "replay.sample_update_512",
        "replay.insert_512",
        "replay.ray.insert_steps_per_s",
        "replay.ray.sample_windows_per_s",
        "replay.two_shards",
        "replay.frames_insert",
        "replay.durability.none",
        "replay.durability.snapshot",
        "replay.durability.journal",
        "replay.snapshot_stall_ms",
        "replay.snapshot_s_per_gb",
        "replay.restore_s_per_gb",
        "replay.atari_gather",
        "replay.r2d2_gather",
        "replay.bytes_per_step.atari",
        "replay.bytes_per_step.cartpole",
    ],
    "queue": ["queue.unrolls_per_s"],
    "params": [
        "params.fetch_ms",
        "params.fetch_nothing_newer_ms",
        "params.push_per_s.mlp",
        "params.push_per_s.cnn",
    ],
    "inference": ["inference.steps_per_s.gridworld", "inference.answers_per_s.gridworld"],
    "train": ["train.gridworld.env_steps_per_s", "train.gridworld.updates_per_s", "start.seconds"],
}
IN_ONE_PROCESS = ("actors", "learner")
PRESETS = {"queue": "cartpole-impala"}  # gridworld for all others
SECONDS = {"train": 2.0}  # until its learner has made an update for certain; 0.2 for all others


def figure(name: str = "x", value: float = 1.0, limit: float = 1.0, **more: str) -> Figure:
    return Figure(name=name, value=value, unit="things/s", limit=limit, limit_name="a limit", **more)  # type: ignore[arg-type]


def check_figures(name: str, figures: list[Figure]) -> None:
    assert [figure.name for figure in figures] == EXPECTED[name]
    check_values(figures)


def check_values(figures: list[Figure]) -> None:
    for figure in figures:
        assert figure.value > 0
        assert figure.limit > 0
        assert math.isfinite(figure.ratio)
        assert figure.settings
        assert figure.unit
        assert figure.limit_name


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)  # what is measured sets it, as a run's learner does


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_a_bench_gives_its_figures(name: str) -> None:
    figures = import_module(BENCHES[name].module).measure(load("gridworld"), "gridworld", 0.2)

    check_figures(name, figures)


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
@pytest.mark.parametrize("preset", ["cartpole-impala", "cartpole-ppo"])
def test_roles_are_measured_in_every_topology_with_a_learner(name: str, preset: str) -> None:
    small = Layer("test", {"env": {"copies": 2}})

    figures = import_module(BENCHES[name].module).measure(load(preset, (), small), preset, 0.2)

    assert [figure.name for figure in figures] == [f"{name}.efficiency.{preset}"]
    check_values(figures)


@pytest.mark.cluster
@pytest.mark.parametrize("name", [name for name in BENCHES if name not in IN_ONE_PROCESS])
def test_a_bench_with_ray_gives_its_figures(name: str) -> None:
    check_figures(name, run_bench(name, PRESETS.get(name, "gridworld"), SECONDS.get(name, 0.2)))


@pytest.mark.cluster
@pytest.mark.parametrize("preset", ["cartpole-impala", "cartpole-ppo"])
def test_a_run_of_whole_unrolls_is_measured_with_its_lag(preset: str) -> None:
    figures = run_bench("train", preset, 2.0)

    assert [figure.name for figure in figures][:2] == [
        f"train.{preset}.env_steps_per_s",
        f"train.{preset}.updates_per_s",
    ]
    check_values(figures)
    assert figures[0].settings["lag_p95"] >= figures[0].settings["lag_p50"] >= 0.0


def test_a_larger_ratio_is_better_whatever_is_measured() -> None:
    assert figure(value=50.0, limit=100.0).ratio == 0.5
    assert figure(value=50.0, limit=100.0, better="lower").ratio == 2.0
    assert figure(value=0.0, limit=100.0, better="lower").ratio == 0.0


def test_each_work_is_measured_in_turn() -> None:
    turns: list[str] = []

    rates([lambda: turns.append("a") or 1, lambda: turns.append("b") or 1], 0.0)

    assert "".join(turns) == "ab" + WINDOWS * "ab"


def test_each_call_is_timed_in_turn() -> None:
    turns: list[str] = []

    times = typical_s([lambda: turns.append("a") or 1, lambda: turns.append("b") or 1], 0.0)

    assert "".join(turns) == TURNS * "ab"
    assert min(times) > 0.0


def test_work_is_done_once_at_least() -> None:
    assert rate(lambda: 1, 0.0) > 0.0


def test_a_runs_speed_leaves_out_its_first_seconds_and_its_last() -> None:
    samples = [Sample(1.0, 10, 0), Sample(2.0, 20, 5), *(Sample(2.0 + s, 20 + 100 * s, 5 + 10 * s) for s in (1, 2, 3))]

    assert speeds([*samples, Sample(5.5, 321, 36)]) == (100.0, 10.0)
    assert speeds(samples[:1]) == (10.0, 0.0)
    assert speeds(samples[:3]) == (40.0, 5.0)


def test_the_slower_side_limits_both_clocks() -> None:
    replay = {"samples_per_insert": 2.0}
    config = load("cartpole", (), Layer("test", {"learner": {"batch_size": 64}, "replay": replay, "actor": {"num": 2}}))

    assert allowed(config, actor=1e9, learner=100.0) == (3200.0, 100.0)
    env_steps, updates = allowed(config, actor=320.0, learner=1e9)
    assert updates == env_steps / 32.0


def test_an_unroll_passes_through_the_queue_once_however_often_it_is_learned_from() -> None:
    config = load("cartpole-impala", (), Layer("test", {"queue": {"uses": 3}}))
    assert isinstance(config, QueueRun)
    taker = Taker(config, no_clock)
    for sequence in range(2 * config.learner.unrolls):
        taker.inlet.insert(unroll_of(sequence=sequence))

    while not taker.step().waits:
        pass

    assert taker.stats()["counts"]["unrolls"] == 2 * config.learner.unrolls


def test_a_queue_is_limited_by_its_slower_side_and_lockstep_by_both_in_turn() -> None:
    queue = load("cartpole-impala", (), Layer("test", {"queue": {"uses": 2}}))
    lockstep = load("cartpole-ppo")
    queued, together = steps_per_update(queue), steps_per_update(lockstep)

    env_steps, updates = allowed(queue, actor=1e9, learner=100.0)
    both = allowed(lockstep, actor=1e12, learner=100.0)

    assert (env_steps, updates) == (50.0 * queued, 100.0)  # every unroll is learned from twice
    assert both == pytest.approx((100.0 * together, 100.0))
    assert allowed(lockstep, actor=1.0, learner=1e12)[0] <= lockstep.actor.num


@pytest.mark.parametrize(
    ("preset", "benches"),
    [
        ("cartpole", ["actors", "learner", "replay", "inference", "params", "train"]),
        ("cartpole-impala", ["actors", "learner", "queue", "inference", "params", "train"]),
        ("cartpole-ppo", ["actors", "learner", "params", "train"]),
        ("cartpole-a3c", ["params"]),
    ],
)
def test_each_topology_has_its_own_benchmarks(preset: str, benches: list[str]) -> None:
    assert benches_for(load(preset)) == benches


def test_a_benchs_own_error_is_one_sentence(tmp_path: Path) -> None:
    settings = tmp_path / "broken.toml"
    settings.write_text('preset = "cartpole"\n[env]\nid = "NoSuchEnv-v0"\n')

    with pytest.raises(RoleError, match=r"bench actors ended with code 1: .*NoSuchEnv-v0 is not known"):
        run_bench("actors", str(settings), 0.1)


def test_the_command_writes_figures_with_what_they_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"

    code = main(["bench", "actors", "--preset", "gridworld", "--seconds", "0.1", "--json", str(file)])

    written = json.loads(file.read_text())
    assert code == 0
    assert "actors.efficiency.gridworld" in capsys.readouterr().out
    assert {"processor", "cores", "commit", "packages", "command", "load_average"} <= written.keys()
    (row,) = written["figures"]
    assert row["ratio"] == pytest.approx(row["value"] / row["limit"])
    assert {"name", "value", "unit", "limit", "limit_name", "better", "ratio", "settings"} == row.keys()


def test_only_what_noise_cannot_explain_is_a_regression() -> None:
    before = {"a": 0.8, "b": 0.8, "gone": 1.0}
    now = [figure("a", 0.7), figure("b", 0.5), figure("new", 0.1)]

    assert regressions(now, before, tolerance=0.25) == ["b is at 0.50 of its limit, and was at 0.80"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["actor"],
            "bench must be one of actors, learner, replay, queue, inference, params, train, all, got 'actor'; "
            "did you mean actors?",
        ),
        (
            ["queue", "--preset", "cartpole-ppo"],
            "bench must be one of actors, learner, params, train, all for preset cartpole-ppo, whose topology is "
            "lockstep, got queue",
        ),
        (["all", "--seconds", "0"], "seconds must be > 0, got 0.0"),
        (["all", "--preset", "cartpol"], "did you mean cartpole?"),
        (["all", "--baseline", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *args]) == 2

    assert sentence in capsys.readouterr().err


def test_numbers_show_three_digits_that_mean_something() -> None:
    assert [readable(value) for value in (0.012345, 1.2345, 12345.6)] == ["0.0123", "1.23", "12,346"]


def test_settings_are_named_after_their_preset_or_file() -> None:
    assert (stem("cartpole"), stem("my/own.toml")) == ("cartpole", "own")
