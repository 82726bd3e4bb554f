"""Whole unrolls as batches: what each step led to, where episodes begin, and what a network sees of both."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from actors.copies import Copies, EnvConfig
from actors.envs import make_copies
from actors.rollout import Rollout
from starling.algorithms.a3c import A3c, A3cConfig
from starling.batches import batch_of
from starling.metrics import Meter, no_clock
from starling.networks.forward import build_forward
from starling.networks.nets import LearnerNets
from starling.sight import see, successors
from starling.types import Batch, Place, Unroll
from tests.counting import Counting
from tests.playing import collect, rollout_of
from tests.test_rollout import BACKENDS

CPU = torch.device("cpu")
WORTH = torch.tensor([0.5, 3.0, 0.25, 0.001], dtype=torch.float64)


def unrolls(backend: str, lengths: list[int], seed: int = 7) -> list[Unroll]:
    return collect(rollout_of(BACKENDS[backend](), None, seed), lengths)


def led_to(batch: Batch) -> torch.Tensor:
    """Return by the environment's own rule what was seen after each step."""
    seed, episode, step, acts = batch.obs[:-1].double().unbind(-1)
    return torch.stack([seed, episode, step + 1, acts * 10 + batch.action], -1)


def worth(obs: torch.Tensor) -> torch.Tensor:
    return obs.double() @ WORTH


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_is_followed_by_what_it_led_to_and_by_nothing_where_the_episode_terminated(
    backend: str, count: int
) -> None:
    played = unrolls(backend, [17, 17])[1:] + unrolls(backend, [17], seed=8)
    batch = batch_of(played[:count], CPU)

    after = successors(batch, worth(batch.obs), worth(batch.final_obs))

    expected = torch.where(batch.terminated, 0.0, worth(led_to(batch)))
    torch.testing.assert_close(after[batch.valid], expected[batch.valid])
    assert after.shape == (17, 3 * count)
    assert (batch.truncated & ~batch.terminated).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_begin_where_age_is_zero_also_behind_the_last_row(backend: str) -> None:
    behind = []
    played = unrolls(backend, [1] * 30)
    for unroll, later in pairwise(played):
        first = batch_of([unroll], CPU).first

        assert np.array_equal(first[0], unroll.columns["age"][0] == 0)
        assert np.array_equal(first[1], later.columns["age"][0] == 0)
        behind.append(first[1].any())
    assert any(behind)
    assert not all(behind)


def test_unrolls_stand_beside_one_another_in_their_order() -> None:
    parts = [unrolls("DISABLED", [9], seed)[0] for seed in (1, 2, 3)]

    whole, alone = batch_of(parts, CPU), [batch_of([part], CPU) for part in parts]

    for name in ("obs", "action", "reward", "terminated", "truncated", "valid", "version", "first"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(one, name) for one in alone], 1))
    assert torch.equal(whole.extras["q"], torch.cat([one.extras["q"] for one in alone], 1))
    assert (whole.final_at.diff() > 0).all()
    ends = (whole.terminated | whole.truncated).flatten().nonzero().squeeze(1)
    assert torch.equal(whole.final_at, ends)
    assert whole.weights.tolist() == [1.0] * 9


def test_extras_are_only_what_the_algorithm_stored() -> None:
    assert batch_of(unrolls("DISABLED", [4]), CPU).extras.keys() == {"q"}


def small_counting() -> Copies:
    """Return copies whose observations are of a size that does not saturate a memory."""

    class Small(Counting):
        def _observe(self) -> np.ndarray:
            return self._obs * [1e-3, 0.1, 0.2, 1e-5]

    return make_copies(EnvConfig(id="small", copies=3), Small)


@pytest.mark.parametrize("shared", [True, False])
def test_a_network_sees_a_whole_unroll_as_its_actor_saw_step_by_step(shared: bool) -> None:
    copies = small_counting()
    spec = copies.spec
    algorithm = A3c(A3cConfig(memory=4, shared=shared, hidden=(8,)))
    generator = torch.Generator().manual_seed(0)
    nets = LearnerNets(algorithm.networks(spec), {}, spec, generator, CPU)
    forward = build_forward(algorithm.acting(spec), spec)
    rollout = Rollout(copies, algorithm, forward, Place(0, 1, 3), np.random.SeedSequence(1))
    rollout.load(nets.params(len(nets.layout.entries)))
    rollout.collect(7, 1, Meter(no_clock))  # so that the next one begins inside of episodes
    unroll = rollout.collect(20, 1, Meter(no_clock))

    critic = see(nets, "policy" if shared else "value", batch_of([unroll], CPU))

    state = {name: start.copy() for name, start in unroll.starts.items()}
    finals = dict(zip(unroll.final_at.tolist(), unroll.final_obs, strict=True))
    values, final_values = critic.rows["value"].detach().numpy(), iter(critic.final["value"].numpy())
    for t in range(20):
        for array in state.values():
            array[unroll.columns["age"][t] == 0] = 0.0
        outputs, state = forward.recall(unroll.columns["obs"][t], state)
        np.testing.assert_allclose(values[t], outputs["value"], atol=1e-6)
        for e in range(3):
            if t * 3 + e in finals:
                own = {name: array[e : e + 1] for name, array in state.items()}
                final, _ = forward.recall(finals[t * 3 + e][None], own)
                np.testing.assert_allclose(next(final_values), final["value"][0], atol=1e-6)
    assert len(finals) > 5
    assert any(start.any() for start in unroll.starts.values())
