"""DQN's maths against slow definitions, and its limit case: a table."""

import numpy as np
import pytest
import torch
from torch import nn

from starling.algorithms.dqn import Dqn, DqnConfig
from starling.errors import ConfigError
from starling.spec import ArraySpec, Spec
from starling.types import Batch, Believed, Place

SPEC = Spec(env="test", obs=ArraySpec((), "int64"), action=ArraySpec((), "int64"), classes=(6,), num_actions=3)
PLAIN = {"n_step": 1, "double": False, "dueling": False, "huber_delta": 0.0}


class Table(nn.Module):
    """Q by state, read like a network."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"q": self.values[obs]}


class Tables:
    """Online and target tables as an algorithm sees networks."""

    def __init__(self, q: np.ndarray, target: np.ndarray) -> None:
        self.tables = {"q": Table(q), "target": Table(target)}

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def frozen(self, name: str, obs: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return self.tables[name](obs)


def tables(seed: int = 0) -> Tables:
    rng = np.random.default_rng(seed)
    return Tables(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)))


def batch_of(length: int = 1, size: int = 8, seed: int = 1, **changes: object) -> Batch:
    rng = np.random.default_rng(seed)
    fields: dict[str, object] = {
        "obs": torch.tensor(rng.integers(6, size=(2, size))),
        "action": torch.tensor(rng.integers(3, size=(length, size))),
        "reward": torch.tensor(rng.normal(size=(length, size))),
        "terminated": torch.zeros(length, size, dtype=torch.bool),
        "truncated": torch.zeros(length, size, dtype=torch.bool),
        "valid": torch.ones(length, size, dtype=torch.bool),
        "version": torch.ones(length, size),
        "weights": torch.tensor(rng.random(size)),
    }
    return Batch(**{**fields, **changes})  # type: ignore[arg-type]


def batch_of_episodes_that_end(length: int) -> Batch:
    """Windows that terminate, are truncated, or go on, at or after every step."""
    rng = np.random.default_rng(2)
    end = rng.integers(1, length + 2, 8)  # steps until the episode ends; length + 1: it does not
    rows = np.arange(length)[:, None]
    at_end, terminal = rows == end - 1, rng.random(8) < 0.5
    return batch_of(
        length,
        terminated=torch.tensor(at_end & terminal),
        truncated=torch.tensor(at_end & ~terminal),
        valid=torch.tensor(rows < end),
    )


def slow_target(nets: Tables, batch: Batch, i: int, double: bool, discount: float) -> float:
    """The definition, one window at a time."""
    total, factor = 0.0, 1.0
    for t in range(len(batch.reward)):
        total += factor * float(batch.reward[t, i])
        factor *= discount
        if batch.terminated[t, i]:
            return total
        if batch.truncated[t, i]:
            break
    after = int(batch.obs[-1, i])
    online, target = nets["q"].values[after].detach(), nets["target"].values[after].detach()
    best = int(online.argmax()) if double else int(target.argmax())
    return total + factor * float(target[best])


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_the_error_is_target_minus_taken(double: bool, length: int) -> None:
    batch = batch_of_episodes_that_end(length)
    nets = tables()
    algorithm = Dqn(DqnConfig(n_step=length, double=double, dueling=False, huber_delta=0.0, discount=0.9))

    losses = algorithm.losses(nets, batch, None)

    targets = np.array([slow_target(nets, batch, i, double, 0.9) for i in range(8)])
    taken = nets["q"].values[batch.obs[0], batch.action[0]].detach().numpy()
    np.testing.assert_allclose(losses.priorities, abs(targets - taken), rtol=1e-12)
    losses.groups["q"].backward()
    gradient = np.zeros((6, 3))
    for i in range(8):
        state, action = int(batch.obs[0, i]), int(batch.action[0, i])
        gradient[state, action] -= float(batch.weights[i]) * (targets[i] - taken[i]) / 8
    assert nets["q"].values.grad is not None
    np.testing.assert_allclose(nets["q"].values.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)


def test_double_chooses_by_the_online_network_and_values_by_the_target() -> None:
    online = np.zeros((6, 3))
    online[:, 1] = 1.0
    target = np.tile([5.0, 2.0, 9.0], (6, 1))
    batch = batch_of(size=1, reward=torch.zeros(1, 1, dtype=torch.float64), action=torch.zeros(1, 1, dtype=torch.long))

    def error(double: bool) -> float:
        algorithm = Dqn(DqnConfig(**{**PLAIN, "double": double}, discount=1.0))  # type: ignore[arg-type]
        return float(algorithm.losses(Tables(online, target), batch, None).priorities)

    assert error(double=True) == pytest.approx(2.0)
    assert error(double=False) == pytest.approx(9.0)


def test_huber_is_half_a_square_up_to_delta_and_a_line_beyond() -> None:
    values = np.zeros((6, 3))
    batch = batch_of(size=2, obs=torch.zeros(2, 2, dtype=torch.long), weights=torch.ones(2, dtype=torch.float64))
    batch.reward[0] = torch.tensor([0.5, -4.0])

    losses = Dqn(DqnConfig(**{**PLAIN, "huber_delta": 1.0})).losses(Tables(values, values), batch, None)  # type: ignore[arg-type]

    assert float(losses.groups["q"].detach()) == pytest.approx((0.5 * 0.25 + (4.0 - 0.5)) / 2)


def test_the_ladder_runs_over_all_copies_of_all_actors() -> None:
    algorithm = Dqn(DqnConfig())

    ladder = np.concatenate([algorithm.explore(Place(actor, 3, 4)) for actor in range(3)])

    np.testing.assert_allclose(ladder, [0.4 ** (1 + 7 * i / 11) for i in range(12)], rtol=1e-6)
    assert Dqn(DqnConfig()).explore(Place(0, 1, 1)) == pytest.approx([0.4])


def test_the_greedy_action_is_that_of_the_largest_q_and_its_q_the_states_value() -> None:
    outputs = {"q": np.array([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0]], np.float32)}

    assert Dqn(DqnConfig()).greedy(outputs).tolist() == [1, 0]
    assert Dqn(DqnConfig()).value(outputs).tolist() == [2.0, -1.0]


def test_exploration_is_each_copys_own_epsilon() -> None:
    q = np.tile([0.0, 1.0, 0.0], (3, 1)).astype(np.float32)
    rng = np.random.default_rng(0)

    acts = [Dqn(DqnConfig()).act({"q": q}, np.array([0.0, 0.3, 1.0], np.float32), rng) for _ in range(3000)]

    greedy = np.mean([act.action == 1 for act in acts], axis=0)
    np.testing.assert_allclose(greedy, [1.0, 0.7 + 0.1, 1 / 3], atol=0.03)
    assert all((act.taken == q[np.arange(3), act.action]).all() for act in acts)


def test_the_actors_priority_is_the_learners_when_they_have_the_same_network() -> None:
    nets = tables()
    nets.tables["target"] = nets.tables["q"]
    batch = batch_of_episodes_that_end(length=3)
    steps = batch.valid.numpy().sum(0)
    q = nets["q"].values.detach().numpy()
    value = np.full((4, 8), 1e9)
    value[steps, np.arange(8)] = q[batch.obs[-1]].max(1)
    believed = Believed(
        reward=batch.reward.numpy(),
        terminated=batch.terminated.numpy(),
        valid=batch.valid.numpy(),
        taken=np.stack([q[batch.obs[0], batch.action[0]]] * 3),
        value=value,
        steps=steps,
    )
    algorithm = Dqn(DqnConfig(dueling=False))

    by_actor = algorithm.priorities(believed)

    np.testing.assert_allclose(by_actor, algorithm.losses(nets, batch, None).priorities, rtol=1e-12)


def test_a_box_of_actions_is_refused_in_one_sentence() -> None:
    box = Spec(env="Pendulum-v1", obs=ArraySpec((3,), "float32"), action=ArraySpec((1,), "float32"))

    with pytest.raises(ConfigError, match="dqn needs discrete actions; Pendulum-v1 has a box"):
        Dqn(DqnConfig()).networks(box)
