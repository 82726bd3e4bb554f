"""The learner: what it moves, what it refuses, what it publishes, and its limit case, a table."""

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig, OptimizerConfig
from learner.feeds import ReplayFeed
from learner.optimizers import Optimizers
from learner.worker import MAX_BAD_BATCHES, Learner
from param_server.server import ParamServer
from starling.algorithms.dqn import Dqn, DqnConfig
from starling.errors import RoleError
from starling.metrics import no_clock
from starling.networks import Linear, Mlp, Network
from starling.networks.nets import LearnerNets
from starling.spec import ArraySpec, Spec
from starling.types import Group, Sampled, Target, Ticket

STATES, ACTIONS = 6, 3
SPEC = Spec(
    env="test", obs=ArraySpec((), "int64"), action=ArraySpec((), "int64"), classes=(STATES,), num_actions=ACTIONS
)


class Script:
    """Serves one-step windows from a list, then waits."""

    def __init__(self, steps: list[tuple[int, int, float, int, bool]], version: int = 1) -> None:
        self._steps = iter(steps)
        self._version = version
        self.priorities: list[float] = []

    def take(self) -> Sampled | str:
        step = next(self._steps, None)
        if step is None:
            return "learner waits for windows: the script is over"
        state, action, reward, after, terminated = step
        columns = {
            "obs": np.array([[state], [after]]),
            "action": np.array([[action]]),
            "reward": np.array([[reward]], np.float32),
            "terminated": np.array([[terminated]]),
            "truncated": np.zeros((1, 1), bool),
            "valid": np.ones((1, 1), bool),
            "version": np.full((1, 1), self._version),
        }
        return Sampled(columns, np.ones(1, np.float32), Ticket(np.zeros(1, np.int64), np.zeros(1, np.int64)))

    def update_priorities(self, ticket: Ticket, priorities: np.ndarray) -> None:
        self.priorities.extend(priorities)


def steps(count: int) -> list[tuple[int, int, float, int, bool]]:
    rng = np.random.default_rng(5)
    return [
        (
            int(rng.integers(STATES)),
            int(rng.integers(ACTIONS)),
            float(rng.normal()),
            int(rng.integers(STATES)),
            bool(rng.random() < 0.2),
        )
        for _ in range(count)
    ]


def learner_on(source: Script, sink: ParamServer, every: int = 1, **algorithm: object) -> Learner:
    knobs = {"n_step": 1, "double": False, "dueling": False, "huber_delta": 0.0, "hidden": (), "bias": False}
    config = LearnerConfig(
        batch_size=1,
        publish_every=every,
        optimizer=OptimizerConfig(kind="sgd", learning_rate=0.1, clip_norm=0.0),
        device="cpu",
    )
    dqn = Dqn(DqnConfig(**{**knobs, "target_every": 1, **algorithm}))  # type: ignore[arg-type]
    feed = ReplayFeed(source, torch.device("cpu"), dqn.window)
    return Learner(config, dqn, SPEC, feed, sink, seed=0, clock=no_clock)


def test_a_one_hot_linear_network_is_a_tables_q_learning() -> None:
    script, server = Script(steps(500)), ParamServer(no_clock)
    learner = learner_on(script, server, discount=0.9)
    table = learner.nets.params(1).arrays()["q.heads.q.weight"].T.astype(np.float64)  # [states, actions]

    for state, action, reward, after, terminated in steps(500):
        learner.step()
        target = reward + (0.0 if terminated else 0.9 * table[after].max())
        table[state, action] += 0.1 * (target - table[state, action])

    np.testing.assert_allclose(learner.nets.params(1).arrays()["q.heads.q.weight"].T, table, atol=1e-6)


def test_without_a_batch_it_says_who_waits() -> None:
    learner = learner_on(Script([]), ParamServer(no_clock))

    assert learner.step().waits == "learner waits for windows: the script is over"


def test_the_first_version_is_published_before_the_first_batch() -> None:
    server = ParamServer(no_clock)

    learner_on(Script([]), server).step()

    fetched = server.fetch(newer_than=0)
    assert fetched is not None
    assert fetched[0] == 1


def test_versions_come_every_so_many_updates_and_are_not_written_to_later() -> None:
    server = ParamServer(no_clock)
    learner = learner_on(Script(steps(10)), server, every=4)
    for _ in range(4):
        learner.step()
    fetched = server.fetch(newer_than=1)
    assert fetched is not None
    version, params = fetched
    before = params.buffer.copy()

    for _ in range(3):
        learner.step()

    assert version == 2
    np.testing.assert_array_equal(params.buffer, before)


def test_a_batch_that_is_not_finite_moves_nothing_and_is_counted() -> None:
    script = Script([(0, 1, float("nan"), 2, False), (0, 1, 1.0, 2, False)])
    learner = learner_on(script, ParamServer(no_clock))
    before = learner.nets.flat.clone()

    learner.step()

    torch.testing.assert_close(learner.nets.flat, before, rtol=0, atol=0)
    assert script.priorities == []
    assert learner.stats()["counts"]["bad_batches"] == 1
    learner.step()
    assert learner.updates == 1


def test_ten_bad_batches_in_a_row_end_the_run_and_name_the_column() -> None:
    learner = learner_on(Script([(0, 1, float("inf"), 2, False)] * MAX_BAD_BATCHES), ParamServer(no_clock))
    for _ in range(MAX_BAD_BATCHES - 1):
        learner.step()

    with pytest.raises(RoleError, match="not finite: reward"):
        learner.step()


def test_lag_is_the_learners_version_minus_the_steps() -> None:
    learner = learner_on(Script(steps(3)), ParamServer(no_clock))
    for _ in range(3):
        learner.step()  # at versions 1, 2, 3; every step was acted by version 1

    assert learner.stats()["histograms"]["lag"][:4] == [1, 1, 1, 0]


def test_recorded_steps_have_no_lag() -> None:
    learner = learner_on(Script(steps(3), version=0), ParamServer(no_clock))
    for _ in range(3):
        learner.step()

    assert sum(learner.stats()["histograms"]["lag"]) == 0


def nets_of(targets: dict[str, Target]) -> LearnerNets:
    networks = {name: Network(torso=Mlp(hidden=(4,)), heads={"out": Linear(outputs=2)}) for name in ("one", "two")}
    return LearnerNets(networks, targets, SPEC, torch.Generator().manual_seed(0), torch.device("cpu"))


def test_parameters_and_gradients_are_views_into_the_flat_buffers() -> None:
    nets = nets_of({})

    nets["two"](torch.tensor([1]))["out"].sum().backward()

    start = nets.vectors["one"].numel()
    assert nets.gradient[:start].abs().sum() == 0
    assert nets.gradient[start:].abs().sum() > 0
    nets.flat.zero_()
    assert nets["one"](torch.tensor([1]))["out"].abs().sum() == 0


def test_a_target_follows_by_period_or_by_tau() -> None:
    nets = nets_of({"hard": Target(of="one", every=3), "soft": Target(of="two", tau=0.25)})
    nets.flat.add_(1.0)
    obs = torch.tensor([0])

    def apart(target: str, of: str) -> float:
        pairs = zip(nets[target].parameters(), nets[of].parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    for update, hard, soft in [(1, 1.0, 0.75), (2, 1.0, 0.75**2), (3, 0.0, 0.75**3)]:
        nets.follow(update)
        assert apart("hard", "one") == pytest.approx(hard, abs=1e-5)
        assert apart("soft", "two") == pytest.approx(soft, abs=1e-5)
    assert all(not p.requires_grad for p in nets["hard"].parameters())
    assert nets["hard"](obs)["out"].requires_grad is False


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_each_loss_moves_its_own_group_as_torch_would(clip: float) -> None:
    groups = {"first": Group(networks=("one",)), "second": Group(networks=("two",), every=2, learning_rate=0.5)}
    config = OptimizerConfig(kind="sgd", learning_rate=0.1, clip_norm=clip)
    nets = nets_of({})
    optimizers = Optimizers(config, groups, nets)
    before = {name: vector.detach().clone() for name, vector in nets.vectors.items()}

    obs = torch.tensor([0, 1, 2])
    both = (nets["one"](obs)["out"] * nets["two"](obs)["out"]).sum()
    expected = torch.autograd.grad(both, nets.parameters("one"), retain_graph=True)
    flat = torch.cat([g.reshape(-1) for g in expected])
    if clip:
        flat = flat * min(1.0, clip / float(flat.norm()))
    optimizers.begin(updates=1)
    moved = optimizers.step({"first": both, "second": both})

    assert moved
    torch.testing.assert_close(nets.vectors["one"].detach(), before["one"] - 0.1 * flat)
    torch.testing.assert_close(nets.vectors["two"].detach(), before["two"])  # not due


@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_one_flat_vector_is_optimized_like_separate_parameters(kind: str) -> None:
    nets, config = nets_of({}), OptimizerConfig(kind=kind, learning_rate=0.01, clip_norm=0.0)  # type: ignore[arg-type]
    optimizers = Optimizers(config, {"first": Group(networks=("one",))}, nets)
    plain = [p.detach().clone().requires_grad_() for p in nets["one"].parameters()]
    maker = {
        "adam": lambda: torch.optim.Adam(plain, lr=0.01),
        "rmsprop": lambda: torch.optim.RMSprop(plain, lr=0.01, alpha=0.95, centered=True),
    }
    reference, obs = maker[kind](), torch.tensor([0, 1, 2])

    for update in range(5):
        loss = nets["one"](obs)["out"].square().sum()
        gradients = torch.autograd.grad(loss, nets.parameters("one"), retain_graph=True)
        for p, g in zip(plain, gradients, strict=True):
            p.grad = g.clone()
        optimizers.begin(update)
        optimizers.step({"first": loss})
        reference.step()

    torch.testing.assert_close(nets.vectors["one"].detach(), torch.cat([p.detach().reshape(-1) for p in plain]))
