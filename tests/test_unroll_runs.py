"""Runs of the queue and lockstep topologies in one process: they repeat, are resumed bit by bit, and lose nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.envs import measure_spec
from cluster.config import Config, LockstepRun, dump, load, parse
from cluster.learners import build_unroll_learner
from cluster.local import run_local
from cluster.report import CheckpointDue, Event, Outcome, Sample
from cluster.resume import refuse_changes, resumed
from cluster.roles import FRESH, VERSION_GAP, Newest, Start
from cluster.run_folder import Run
from learner.worker import Learner
from param_server.server import ParamServer
from starling.config import Layer
from starling.errors import ConfigError
from starling.flags import Flag
from starling.metrics import no_clock, quantile
from starling.params import Params
from starling.state import pack_state
from tests.test_resume import KilledError, keep
from tests.whole_unrolls import PRESETS, short

TOPOLOGIES = list(PRESETS)


def run(config: Config[Any], start: Start = FRESH) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return run_local(config, events.append, clock=no_clock, start=start), events


def killed_after(turns: int, config: Config[Any]) -> list[Event]:
    events: list[Event] = []
    left = iter(range(turns))

    def stopped() -> bool:
        if next(left, None) is None:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        run_local(config, events.append, stopped, no_clock)
    return events


def learner_stats(events: list[Event]) -> dict[str, Any]:
    last = [event for event in events if isinstance(event, Sample)][-1]
    return dict(last.roles["learner[0]"])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_seed_repeats_a_run_bit_by_bit_and_another_is_another_run(topology: str) -> None:
    first, again, other = (run(short(topology, seed=seed))[0] for seed in (1, 1, 2))

    assert first == again
    assert first.params_sha256 != other.params_sha256
    assert first.updates > 20


@pytest.mark.parametrize("turns", [10, 17, 22])
@pytest.mark.parametrize(
    ("topology", "over"),
    [
        ("queue", {}),
        ("queue", {"algorithm": {"normalise_obs": True, "memory": 4}}),
        ("queue", {"queue": {"uses": 2, "capacity": 4, "max_lag": 3}, "learner": {"unrolls": 2}}),
        ("lockstep", {"learner": {"anneal_env_steps": 400}}),
        ("queue", {"inference": {"placement": "central", "num": 2}}),
        ("lockstep", {"inference": {"placement": "central", "num": 2}, "algorithm": {"memory": 4}}),
    ],
)
def test_a_resumed_run_ends_with_the_very_bits_of_the_undisturbed_one(
    topology: str, over: dict[str, Any], turns: int, tmp_path: Path
) -> None:
    config = short(topology, **over)
    whole, _ = run(config)

    keep(killed_after(turns, config), tmp_path / "a", config)
    start, _ = resumed(Run(tmp_path / "a"), config)
    again, _ = run(config, start)

    assert start.past.updates > 0
    assert again == whole


@pytest.mark.parametrize("placement", ["local", "central"])
def test_in_lockstep_every_step_is_learned_from_by_the_version_that_acted(placement: str) -> None:
    three, never = {"num": 3, "unroll_length": 5}, {"every": 0}

    outcome, events = run(short("lockstep", actor=three, checkpoint=never, inference={"placement": placement}))

    stats = learner_stats(events)
    assert stats["histograms"]["lag"][0] == stats["counts"]["steps"]
    assert stats["counts"]["unrolls"] == 3 * outcome.updates
    assert (stats["counts"]["unrolls_stale"], stats["counts"]["unrolls_refused"]) == (0, 0)


@pytest.mark.parametrize("max_lag", [1, 3])
def test_nothing_is_learned_from_that_is_older_than_the_queue_allows(max_lag: int) -> None:
    queue = {"capacity": 8, "max_lag": max_lag}

    _, events = run(short("queue", queue=queue, actor={"num": 4, "unroll_length": 5}))

    stats = learner_stats(events)
    assert quantile(stats["histograms"]["lag"], 1.0) <= max_lag
    assert stats["counts"]["unrolls_stale"] > 0  # four actors play faster than one learner learns


def test_each_unroll_is_learned_from_as_often_as_the_queue_says() -> None:
    queue = {"uses": 3, "capacity": 2}

    outcome, events = run(short("queue", queue=queue, actor={"num": 1, "unroll_length": 5}, checkpoint={"every": 0}))

    roles = [event for event in events if isinstance(event, Sample)][-1].roles
    played = roles["actor[0]"]["counts"]["unrolls"]
    assert 3 * (played - 2) <= outcome.updates <= 3 * played  # two may still be in the queue


def test_a_learner_that_is_replaced_anneals_on_under_higher_versions() -> None:
    config = short("queue", learner={"anneal_env_steps": 1_000, "publish_every": 2})
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    first: Learner = build_unroll_learner(config, spec, no_clock, server, server)
    first.version = 24
    first.publish()

    successor: Learner = build_unroll_learner(config, spec, no_clock, server, server, generation=1)
    successor.step()

    assert successor.version == 26
    assert successor.updates == 50
    assert successor.progress == 0.5  # 50 updates of 2 copies and 5 steps


def test_a_learner_that_is_replaced_goes_on_with_what_its_predecessor_never_published() -> None:
    config = short("lockstep")  # whose actors run the policy alone
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    _, events = run(config)
    last = [event for event in events if isinstance(event, CheckpointDue) and event.states][-1]
    state = last.states["learner[0]"]
    server.publish(last.version + 5, Params(last.params.layout, last.params.buffer + 1.0))

    successor: Learner = build_unroll_learner(
        config, spec, no_clock, server, server, generation=1, kept=pack_state(state)
    )

    after = successor.state()
    for name, array in state.under("nets").under("networks").arrays.items():
        expected = array + 1.0 if name.startswith("policy.") else array
        np.testing.assert_array_equal(after.under("nets").under("networks").arrays[name], expected)
    for name, array in state.under("optimizers").arrays.items():
        np.testing.assert_array_equal(after.under("optimizers").arrays[name], array)
    assert state.under("optimizers").arrays
    assert successor.version == last.version + 5


def test_a_learner_that_is_replaced_does_not_go_back_to_what_a_slow_server_has() -> None:
    config = short("lockstep")
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    first: Learner = build_unroll_learner(config, spec, no_clock, server, server)
    first.publish()
    other: Learner = build_unroll_learner(short("lockstep", seed=5), spec, no_clock, server, server)
    other.version, other.updates = 7, 6

    successor: Learner = build_unroll_learner(
        config, spec, no_clock, server, server, generation=1, kept=pack_state(other.state())
    )

    assert (successor.version, successor.updates) == (7, 6)
    np.testing.assert_array_equal(successor.params().buffer, other.params().buffer)


def test_versions_that_were_skipped_are_no_progress_in_annealing() -> None:
    config = short("queue", learner={"anneal_env_steps": 1_000, "publish_every": 2})
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    first: Learner = build_unroll_learner(config, spec, no_clock, server, server)
    first.version = 3 * VERSION_GAP + 24
    first.publish()

    successor: Learner = build_unroll_learner(config, spec, no_clock, server, server, generation=4)

    assert successor.updates == 50
    assert successor.progress == 0.5


@pytest.mark.parametrize("stood", [7, VERSION_GAP + 7])
def test_a_learner_that_dies_with_its_parameter_server_is_followed_by_versions_above_all_of_its_own(
    stood: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors in lockstep wait for a version newer than the newest that they played."""
    monkeypatch.setattr("cluster.learners.NEWEST_TRIES", 1)
    config = short("lockstep")
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    first: Learner = build_unroll_learner(config, spec, no_clock, server, server)
    first.version = stood
    start = Start(states={"learner[0]": first.state()})
    days = 1 << 30  # versions

    successor: Learner = build_unroll_learner(
        config, spec, no_clock, ParamServer(no_clock), ParamServer(no_clock), generation=1, start=start
    )

    assert successor.version > stood + days


def test_a_learner_whose_predecessor_published_nothing_begins_with_the_parameters_that_were_given_to_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.learners.NEWEST_TRIES", 1)
    config = short("queue")
    spec, server = measure_spec(config.env), ParamServer(no_clock)
    other: Learner = build_unroll_learner(short("queue", seed=5), spec, no_clock, server, server)
    start = Start(newest=Newest(version=24, updates=23, params=other.params()))

    successor: Learner = build_unroll_learner(config, spec, no_clock, server, server, generation=1, start=start)

    assert (successor.params().buffer == other.params().buffer).all()
    assert successor.updates == 23
    assert successor.version > 24


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_settings_are_written_and_read_again(topology: str) -> None:
    config = short(topology)

    assert parse(dump(config)) == config
    sections = [line.strip("[]") for line in dump(config).splitlines() if line.startswith("[")]
    assert ("queue" in sections) == (topology == "queue")
    assert sections.index("actor") < sections.index("learner") < sections.index("goal")


@pytest.mark.parametrize(
    ("topology", "over", "sentence"),
    [
        ("queue", {"learner": {"unrolls": 5}}, "learner.unrolls must be at most queue.capacity = 4, got 5"),
        ("queue", {"actor": {"num": 5}}, "actor.num must be at most queue.capacity = 4, got 5"),
        ("queue", {"queue": {"uses": 0}}, "queue.uses must be >= 1, got 0"),
        ("queue", {"queue": {"max_lag": -1}}, "queue.max_lag must be >= 0, got -1"),
        ("queue", {"learner": {"publish_every": 0}}, "learner.publish_every must be >= 1, got 0"),
        ("lockstep", {"learner": {"anneal_env_steps": -1}}, "learner.anneal_env_steps must be >= 0, got -1"),
        ("lockstep", {"learner": {"unrolls": 2}}, "learner.unrolls is not a setting"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(topology: str, over: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        short(topology, **{"queue": {"capacity": 4}, **over} if topology == "queue" else over)


@pytest.mark.parametrize(
    ("topology", "flag", "sections"),
    [
        ("queue", "replay.shards", "env, algorithm, actor, inference, queue, learner, evaluator, goal, checkpoint"),
        ("lockstep", "queue.capacity", "env, algorithm, actor, inference, learner, evaluator, goal, checkpoint"),
    ],
)
def test_a_section_of_another_topology_is_refused_by_name(topology: str, flag: str, sections: str) -> None:
    with pytest.raises(ConfigError, match=rf"sections must be of {sections} for this algorithm, got {flag[:5]}"):
        load(PRESETS[topology], [Flag(f"--{flag}", ["2"])])


def test_a_run_is_resumed_only_with_the_settings_that_its_learner_had(tmp_path: Path) -> None:
    old = load(PRESETS["lockstep"])
    more_actors = load(PRESETS["lockstep"], (), Layer("test", {"actor": {"num": 3}, "goal": {"total_steps": 7}}))
    other = load(PRESETS["lockstep"], (), Layer("test", {"learner": {"anneal_env_steps": 7}}))

    refuse_changes(Run(tmp_path / "a"), old, more_actors)
    with pytest.raises(ConfigError, match=r"learner.anneal_env_steps must stay 0 when a is resumed, got 7; only goal"):
        refuse_changes(Run(tmp_path / "a"), old, other)


def test_workers_of_the_classic_a2c_have_no_networks() -> None:
    config = load("cartpole-a2c")

    assert isinstance(config, LockstepRun)
    assert config.inference.placement == "central"
