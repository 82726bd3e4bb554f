"""The learner of whole unrolls: what an update is, how it is annealed, and what is published without one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import OptimizerConfig, UnrollLearnerConfig
from learner.feeds import UnrollFeed
from learner.lineup import Lineup
from learner.worker import MAX_BAD_BATCHES, Learner
from param_server.server import ParamServer
from starling.algorithms.a3c import A3c, A3cConfig
from starling.algorithms.actor_critic import A2cConfig, ActorCritic
from starling.errors import RoleError
from starling.metrics import no_clock
from starling.spec import ArraySpec, Spec
from starling.types import Batch, Group, Losses, Nets, Optimizing
from tests.unrolls import unroll_of

SPEC = Spec(env="test", obs=ArraySpec((2,), "float32"), action=ArraySpec((), "int64"), num_actions=3)
CPU = torch.device("cpu")
STEPS = 2  # of an unroll


class Slope(A3c):
    """Its loss is the sum of a policy's parameters, so that each step goes down by the learning rate."""

    def __init__(self) -> None:
        super().__init__(A3cConfig(hidden=()))
        self.progress: list[float] = []

    def groups(self) -> Mapping[str, Group]:
        return {"slope": Group(networks=("policy",))}

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        self.progress.append(batch.progress)
        total = sum(parameter.sum() for parameter in nets["policy"].parameters())
        return Losses(groups={"slope": total * batch.reward.mean()})


class Thrice(Slope):
    """Makes three steps of every batch."""

    def update(self, nets: Nets, optimizers: Optimizing, batch: Batch, rng: Any) -> Losses | None:
        for _ in range(3):
            losses = self.losses(nets, batch, rng)
            if not optimizers.step(losses.groups):
                return None
        return losses


def learner_of(algorithm: A3c, anneal: int = 0, actors: int = 1) -> tuple[Learner, Lineup, ParamServer]:
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.5, clip_norm=0.0)
    config = UnrollLearnerConfig(optimizer=optimizer, device="cpu", anneal_env_steps=anneal)
    lineup, server = Lineup(actors, no_clock), ParamServer(no_clock)
    return Learner(config, algorithm, SPEC, UnrollFeed(lineup, CPU), server, seed=0, clock=no_clock), lineup, server


def learn(learner: Learner, lineup: Lineup, reward: float = 1.0) -> float:
    """Learn from the next version's unroll, and return by how much each parameter of the policy went down."""
    before = learner.nets.vectors["policy"].detach().clone()
    learner.step()  # publishes the first version, or has nothing to learn from
    unroll = unroll_of(sequence=learner.version, version=learner.version, steps=STEPS)
    unroll.columns["version"][:] = learner.version
    unroll.columns["reward"][:] = reward
    lineup.insert(unroll)
    learner.step()
    went = before - learner.nets.vectors["policy"].detach()
    assert went.max() == pytest.approx(float(went.min()), abs=1e-6)
    return float(went[0])


def test_an_update_counts_its_unrolls_its_steps_and_their_lag() -> None:
    learner, lineup, server = learner_of(Slope(), actors=2)
    learner.step()
    for actor in (1, 0):
        unroll = unroll_of(actor, version=1, steps=STEPS)
        unroll.columns["acted"][1] = False  # a row that only resets is not learned from
        lineup.insert(unroll)

    progress = learner.step()

    stats = learner.stats()
    assert progress.work == {"updates": 1}
    expected = {"updates": 1, "unrolls": 2, "steps": 2, "unrolls_stale": 0, "unrolls_refused": 0}
    assert stats["counts"] == expected
    assert stats["histograms"]["lag"][:2] == [2, 0]
    assert server.fetch(newer_than=1) is not None  # a version after every update


def test_without_an_unroll_it_says_whose_is_missing() -> None:
    learner, _, _ = learner_of(Slope())

    assert learner.step().waits == "learner waits for unrolls of version 1 from actor[0], for 0 s"


def test_the_learning_rate_and_the_losses_schedules_are_annealed_by_the_steps_learned_from() -> None:
    algorithm = Slope()
    learner, lineup, _ = learner_of(algorithm, anneal=4 * STEPS)

    went = [learn(learner, lineup) for _ in range(6)]

    assert went == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0, 0.0], abs=1e-6)
    assert algorithm.progress == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_annealing_goes_on_from_a_state() -> None:
    learner, lineup, _ = learner_of(Slope(), anneal=4 * STEPS)
    learn(learner, lineup)
    learn(learner, lineup)
    successor, its_lineup, _ = learner_of(Slope(), anneal=4 * STEPS)

    successor.restore(learner.state())

    assert successor.progress == 0.5
    assert learn(successor, its_lineup) == pytest.approx(0.25, abs=1e-6)


def test_without_annealing_every_step_is_as_large() -> None:
    learner, lineup, _ = learner_of(Slope())

    assert [learn(learner, lineup) for _ in range(3)] == pytest.approx([0.5] * 3, abs=1e-6)


def test_an_algorithm_may_make_more_of_a_batch_than_one_step() -> None:
    learner, lineup, _ = learner_of(Thrice(), anneal=2 * STEPS)

    assert [learn(learner, lineup) for _ in range(2)] == pytest.approx([1.5, 0.75], abs=1e-6)
    assert learner.updates == 2


@pytest.mark.parametrize("algorithm", [Slope(), Thrice()])
def test_a_batch_that_is_not_finite_moves_nothing_and_still_leads_to_a_version(algorithm: A3c) -> None:
    """Those who play in lockstep wait for the version after the one that they played."""
    learner, lineup, server = learner_of(algorithm)
    learner.step()

    went = learn(learner, lineup, reward=float("nan"))

    assert went == 0.0
    assert learner.updates == 0
    assert learner.stats()["counts"]["bad_batches"] == 1
    fetched = server.fetch(newer_than=1)
    assert fetched is not None
    assert fetched[0] == 2


def test_ten_bad_batches_in_a_row_name_what_is_wrong_with_any_of_their_unrolls() -> None:
    learner, lineup, _ = learner_of(Slope())
    for _ in range(MAX_BAD_BATCHES - 1):
        learn(learner, lineup, reward=float("inf"))

    with pytest.raises(RoleError, match="not finite: reward"):
        learn(learner, lineup, reward=float("inf"))


class Watching(ActorCritic):
    """Notes how many observations its policy had seen when a loss was computed."""

    def __init__(self) -> None:
        super().__init__(A2cConfig(hidden=(4,), normalise_obs=True))
        self.seen: list[float] = []

    def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
        self.seen.append(float(nets["policy"].torso.norm.count))
        return super().losses(nets, batch, rng)


def test_inputs_are_observed_after_the_update_that_they_belong_to_and_only_where_somebody_acted() -> None:
    algorithm = Watching()
    learner, lineup, _ = learner_of(algorithm)
    for version in (1, 2):
        unroll = unroll_of(sequence=version, version=version, steps=3)
        unroll.columns["obs"][:] = [[[1.0, 5.0]], [[3.0, 5.0]], [[1000.0, 1000.0]]]
        unroll.columns["acted"][2] = False
        learner.step()
        lineup.insert(unroll)
        learner.step()

    arrays = learner.params().arrays()
    assert algorithm.seen[1] - algorithm.seen[0] == 2.0
    np.testing.assert_allclose(arrays["policy.torso.norm.mean"], [2.0, 5.0], rtol=1e-3)


def test_an_actors_unrolls_come_in_at_the_learners_inlet() -> None:
    learner, lineup, _ = learner_of(Slope())

    assert learner.inlet is lineup


def test_a_long_update_is_seen_to_get_on() -> None:
    turns = []

    class Watched(Thrice):
        def losses(self, nets: Nets, batch: Batch, rng: object) -> Losses:
            turns.append(learner.stats()["turns"])
            return super().losses(nets, batch, rng)

    learner, lineup, _ = learner_of(Watched())
    learner.step()
    lineup.insert(unroll_of(version=learner.version))
    learner.step()

    assert turns[0] < turns[1] < turns[2]
