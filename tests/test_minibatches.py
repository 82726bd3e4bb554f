"""Parts of a batch: every step that is one is in one of them, and what remembers stays whole."""

from dataclasses import replace

import pytest
import torch

from starling.minibatches import Minibatches
from starling.types import Batch
from tests.test_actor_critic import states


def numbered(memory: bool) -> Batch:
    """Return a batch whose steps are numbered, and with a memory also its copies."""
    batch = states()
    length, copies = batch.reward.shape
    number = torch.arange(length * copies).view(length, copies)
    starts = {"policy": torch.arange(copies).float()[:, None, None].expand(-1, 2, 3)} if memory else {}
    return replace(batch, extras={"number": number}, starts=starts)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 3, 4, 38, 100])
def test_each_step_is_dealt_once_and_a_row_that_only_resets_never(count: int) -> None:
    batch = numbered(memory=False)

    parts = list(Minibatches(batch, {}).deal(count, generator()))

    dealt = torch.cat([part.extras["number"] for part in parts])
    assert sorted(dealt.tolist()) == batch.extras["number"][batch.valid].tolist()
    sizes = {len(part.valid) for part in parts}
    assert len(parts) == min(count, 38)
    assert max(sizes) - min(sizes) <= 1
    assert all(part.valid.all() for part in parts)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_with_a_memory_whole_copies_are_dealt_with_their_starts(count: int) -> None:
    batch = numbered(memory=True)

    parts = list(Minibatches(batch, {}).deal(count, generator()))

    copies = torch.cat([part.extras["number"][0] for part in parts])
    assert sorted(copies.tolist()) == list(range(5))
    assert len(parts) == min(count, 5)
    for part in parts:
        whose = part.extras["number"][0]
        assert torch.equal(part.extras["number"], batch.extras["number"][:, whose])
        assert torch.equal(part.first, batch.first[:-1, whose])
        assert torch.equal(part.starts["policy"][:, 0, 0], whose.float())


@pytest.mark.parametrize("memory", [False, True])
def test_what_belongs_to_a_step_stays_with_it(memory: bool) -> None:
    batch = numbered(memory)
    computed = {"twice": 2 * batch.extras["number"]}

    for part in Minibatches(batch, computed).deal(3, generator()):
        t, e = part.extras["number"] // 5, part.extras["number"] % 5
        assert torch.equal(part.extras["twice"], 2 * part.extras["number"])
        assert torch.equal(part.obs, batch.obs[t, e])
        assert torch.equal(part.action, batch.action[t, e])
        assert torch.equal(part.valid, batch.valid[t, e])


def test_every_deal_is_of_another_order_which_the_generator_repeats() -> None:
    minibatches = Minibatches(numbered(memory=False), {})

    def order(drawn: torch.Generator) -> list[int]:
        return torch.cat([part.extras["number"] for part in minibatches.deal(2, drawn)]).tolist()

    ongoing = generator()
    assert order(ongoing) == order(generator())
    assert order(ongoing) != order(generator())


def test_a_batch_without_a_step_is_one_empty_part() -> None:
    batch = numbered(memory=False)
    batch.valid[:] = False

    (part,) = Minibatches(batch, {}).deal(4, generator())

    assert part.obs.shape == (0,)
