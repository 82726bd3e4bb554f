"""Runs of the gradients topology in one process: what they learn is what a plain loop learns, however they are cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.envs import make_copies, measure_spec
from actors.rollout import Rollout
from cluster.config import Config, load
from cluster.local import run_local
from cluster.report import CheckpointDue, Event, Outcome
from cluster.resume import resumed
from cluster.roles import FRESH, PARAMS, Start, actor_seed, build_algorithm, build_slice, seed_of
from cluster.run_folder import Run
from starling.batches import batch_of
from starling.config import Layer
from starling.gradients import Push
from starling.metrics import Meter, no_clock
from starling.networks.arrays import first_params, layout_of
from starling.networks.forward import build_forward
from starling.networks.modules import build_modules
from starling.params import Layout, Params
from starling.state import pack_state, unpack_state
from starling.types import Place
from tests.test_resume import KilledError, keep

UPDATES = 500
CPU = torch.device("cpu")


def config_of(preset: str = "cartpole-a3c", **over: Any) -> Config[Any]:
    return load(preset, (), Layer("test", {"runtime": "local", **over}))


def short(preset: str = "cartpole-a3c", **over: Any) -> Config[Any]:
    """Eight hundred steps of CartPole, ten or a few less for each gradient."""
    small: dict[str, Any] = {
        "env": {"copies": 2},
        "actor": {"num": 2, "unroll_length": 5},
        "evaluator": {"episodes": 4, "copies": 2, "every": 7},
        "goal": {"total_steps": 800},
        "checkpoint": {"every": 20},
    }
    return config_of(preset, **{**small, **over})


def run(config: Config[Any], start: Start = FRESH) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return run_local(config, events.append, clock=no_clock, start=start), events


class PlainLoop:
    """A3C without anything asynchronous: one network, one of torch's optimizers, an unroll after the other."""

    def __init__(self, config: Any, optimizer: type[torch.optim.Optimizer]) -> None:
        self.config, self.spec = config, measure_spec(config.env)
        self.algorithm = build_algorithm(config)
        networks = self.algorithm.networks(self.spec)
        self.modules = build_modules(networks, self.spec)
        first = first_params(networks, self.spec, np.random.default_rng(seed_of(config, PARAMS))).arrays()
        self.named = {f"{n}.{p}": tensor for n, m in self.modules.items() for p, tensor in m.named_parameters()}
        with torch.no_grad():
            for name, tensor in self.named.items():
                tensor.copy_(torch.tensor(first[name]))
        self.optimizer = optimizer(self.named.values(), lr=config.params.learning_rate)  # type: ignore[call-arg]
        seed, generation = actor_seed(config, 0, 0)
        acting = self.algorithm.acting(self.spec)
        self.acting = [name for name in self.named if name.startswith(tuple(f"{network}." for network in acting))]
        forward = build_forward(acting, self.spec)
        place = Place(0, 1, config.env.copies)
        self.rollout = Rollout(make_copies(config.env), self.algorithm, forward, place, seed, generation)

    def __getitem__(self, name: str) -> torch.nn.Module:
        return self.modules[name]

    def frozen(self, name: str, *inputs: torch.Tensor) -> Any:
        with torch.no_grad():
            return self.modules[name](*inputs)

    def params(self, names: list[str]) -> Params:
        return Params.of({name: self.named[name].detach().numpy().copy() for name in names})

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            self.rollout.load(self.params(self.acting))
            unroll = self.rollout.collect(self.config.actor.unroll_length, 1, Meter(no_clock))
            self.optimizer.zero_grad()
            sum(self.algorithm.losses(self, batch_of([unroll], CPU), None).groups.values()).backward()
            gradients = [tensor.grad for tensor in self.named.values() if tensor.grad is not None]
            norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
            for gradient in gradients:  # torch's own way adds 1e-6 to the norm, which is more than is compared
                gradient.mul_(min(1.0, self.config.params.clip_norm / norm))
            self.optimizer.step()


def slices_values(events: list[Event]) -> np.ndarray[Any, Any]:
    last = [event for event in events if isinstance(event, CheckpointDue) and event.states][-1]
    states = [last.states[name] for name in sorted(last.states) if name.startswith("param_server[")]
    return np.concatenate([state.arrays["values"] for state in states])


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop), ("sgd", torch.optim.SGD)]
)
def test_one_worker_learns_what_a_plain_loop_learns(kind: str, optimizer: type[torch.optim.Optimizer]) -> None:
    config = short(
        actor={"num": 1, "unroll_length": 5},
        goal={"total_steps": 10 * UPDATES},
        checkpoint={"every": 0},
        params={"optimizer": kind, "slices": 2, "learning_rate": 3e-4},  # slow: what is rounded apart stays near
    )
    plain = PlainLoop(config, optimizer)

    outcome, events = run(config)
    plain.learn(outcome.updates)

    assert outcome.updates >= UPDATES  # a row that only resets a copy is no step
    np.testing.assert_allclose(slices_values(events), plain.params(list(plain.named)).buffer, atol=1e-6)


@pytest.mark.parametrize("preset", ["cartpole-a3c", "cartpole-async-q"])
def test_the_number_of_slices_changes_no_bit(preset: str) -> None:
    runs = [run(short(preset, params={"slices": slices})) for slices in (1, 2, 4)]

    outcomes, values = [outcome for outcome, _ in runs], [slices_values(events) for _, events in runs]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert values[0].tobytes() == values[1].tobytes() == values[2].tobytes()  # the value network too
    assert outcomes[0].updates >= 80


def test_workers_take_turns_and_each_gradient_is_late_by_those_of_the_others() -> None:
    config = short(actor={"num": 4, "unroll_length": 5}, checkpoint={"every": 0})
    runs = [run(config) for _ in range(2)]

    (first, events), (again, _) = runs
    told = [event for event in events if hasattr(event, "roles")][-1]
    assert first == again
    assert {told.roles[f"actor[{i}]"]["counts"]["gradients"] for i in range(4)} == {first.updates // 4}
    assert told.roles["param_server[0]"]["histograms"]["lag"][:3] == [4, 0, first.updates - 4]  # then always three


@pytest.mark.parametrize("turns", [7, 24, 39])
@pytest.mark.parametrize("preset", ["cartpole-a3c", "cartpole-async-q"])
def test_a_resumed_run_ends_with_the_very_bits_of_the_undisturbed_one(preset: str, turns: int, tmp_path: Path) -> None:
    config = short(preset, params={"slices": 2}, checkpoint={"every": 12})
    whole, _ = run(config)
    events: list[Event] = []
    left = iter(range(turns))

    def stopped() -> bool:
        if next(left, None) is None:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        run_local(config, events.append, stopped, no_clock)
    keep(events, tmp_path / "a", config)
    start, _ = resumed(Run(tmp_path / "a"), config)
    again, _ = run(config, start)

    assert start.past.updates > 0
    assert again == whole


def test_a_run_that_ended_goes_on_under_higher_versions(tmp_path: Path) -> None:
    _, events = run(short(goal={"total_steps": 400}))
    keep(events, tmp_path / "a", short(goal={"total_steps": 400}))
    start, _ = resumed(Run(tmp_path / "a"), short())

    outcome, later = run(short(), start)

    versions = [event.version for event in later if isinstance(event, CheckpointDue)]
    assert start.past.updates >= 40
    assert outcome.updates >= start.past.updates + 40
    assert versions == sorted(versions)
    assert versions[0] > start.past.updates


def test_a_checkpoint_holds_the_policy_alone_for_those_who_act() -> None:
    config = short()
    _, events = run(config)
    policy = build_algorithm(config).acting(measure_spec(config.env))

    due = [event for event in events if isinstance(event, CheckpointDue)]
    assert {tuple(event.params.layout.entries) for event in due} == {due[0].params.layout.entries}
    assert all(name.startswith("policy.") for name, _ in due[0].params.layout.entries)
    assert isinstance(due[0].params.layout, Layout)
    assert set(policy) == {"policy"}


def test_a_slice_that_is_replaced_goes_on_from_its_last_state_under_higher_versions() -> None:
    config = short(params={"slices": 2})
    spec = measure_spec(config.env)
    old = build_slice(config, spec, 1, no_clock)
    gradient = np.ones(len(old.values), np.float32)
    push = Push(worker=0, generation=0, step=0, version=0, gradient=gradient, norm=1.0, env_steps=5)
    old.push(push)
    kept = pack_state(old.state())
    old.push(replace(push, step=1))

    new = build_slice(config, spec, 1, no_clock, generation=1, kept=kept)

    assert new.version > old.version
    np.testing.assert_array_equal(new.values, unpack_state(kept).arrays["values"])
    assert new.push(push).why == "repeated"
    assert new.push(replace(push, step=1)).applied  # what the old one knew and the new one does not


def test_versions_do_not_go_back_when_a_successor_dies_before_it_is_heard() -> None:
    config = short()
    spec = measure_spec(config.env)
    first = build_slice(config, spec, 0, no_clock)
    kept = pack_state(first.state())
    unheard = build_slice(config, spec, 0, no_clock, generation=1, kept=kept)
    gradient = np.ones(len(unheard.values), np.float32)
    unheard.push(Push(worker=0, generation=0, step=0, version=0, gradient=gradient, norm=1.0, env_steps=5))

    third = build_slice(config, spec, 0, no_clock, generation=2, kept=kept)

    assert first.version < unheard.version < third.version


def test_a_new_run_begins_with_the_arrays_that_it_is_given() -> None:
    config = short(params={"slices": 3})
    spec = measure_spec(config.env)
    layout = layout_of(build_algorithm(config).networks(spec), spec)
    given = Start(arrays={"policy.heads.logits.bias": np.array([7.0, 8.0], np.float32)})

    values = np.concatenate([build_slice(config, spec, i, no_clock, start=given).values for i in range(3)])

    arrays = Params(layout, values).arrays()
    assert arrays["policy.heads.logits.bias"].tolist() == [7.0, 8.0]
    assert abs(arrays["value.heads.value.weight"]).max() < 1.0


@pytest.mark.learns
@pytest.mark.parametrize("seed", [1, 2])
def test_a3c_solves_cartpole(seed: int) -> None:
    outcome, _ = run(config_of("cartpole-a3c", seed=seed))

    assert outcome.reason == "goal"
    assert outcome.env_steps < 200_000


@pytest.mark.learns
def test_asynchronous_q_solves_cartpole() -> None:
    outcome, _ = run(config_of("cartpole-async-q", seed=1))

    assert outcome.reason == "goal"


@pytest.mark.learns
def test_a3c_swings_the_pendulum_up() -> None:
    outcome, _ = run(config_of("pendulum-a3c", seed=1))

    assert outcome.reason == "goal"
