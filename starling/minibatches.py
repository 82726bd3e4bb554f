"""Parts of a batch of whole unrolls, for algorithms that go over it several times. Imports torch."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from starling.types import Batch


class Part(NamedTuple):
    """Steps to learn from at once: `[n]` in any order, or `[T, b]` of whole copies where networks remember."""

    obs: Tensor
    action: Tensor
    valid: Tensor  # bool
    extras: Mapping[str, Tensor]  # what the algorithm stored, and what it has computed for each step
    starts: Mapping[str, Tensor]  # [b, ...] recurrent state at the first row, by network; empty for single steps
    first: Tensor  # bool, True where an episode begins


class Minibatches:
    """Deals the steps of a batch into parts of nearly one size, each step into one of them.

    Steps are dealt one by one, without those that only reset. Where networks remember, whole copies are dealt, since
    a memory has to be brought up to each step.
    """

    def __init__(self, batch: Batch, computed: Mapping[str, Tensor]) -> None:
        own = {"obs": batch.obs[:-1], "action": batch.action, "valid": batch.valid, "first": batch.first[:-1]}
        self._starts = batch.starts
        self._tensors: dict[str, Tensor] = {**batch.extras, **computed, **own}
        self._dim = 1
        if not batch.starts:
            rows = batch.valid.flatten().nonzero().squeeze(1)
            self._tensors = {name: tensor.flatten(0, 1)[rows] for name, tensor in self._tensors.items()}
            self._dim = 0

    def deal(self, count: int, generator: torch.Generator) -> Iterator[Part]:
        """Yield `count` parts, or as many as there are steps (or copies) to deal, in an order that is drawn anew."""
        size = self._tensors["valid"].shape[self._dim]
        order = torch.randperm(size, generator=generator, device=generator.device)
        # shuffled once, so that a part is a view of its neighbours' tensors and costs nothing more
        shuffled = {name: tensor.index_select(self._dim, order) for name, tensor in self._tensors.items()}
        starts = {name: state.index_select(0, order) for name, state in self._starts.items()}
        count = max(min(count, size), 1)
        for begin, end in pairwise(size * i // count for i in range(count + 1)):
            dealt = {name: tensor.narrow(self._dim, begin, end - begin) for name, tensor in shuffled.items()}
            yield Part(
                obs=dealt.pop("obs"),
                action=dealt.pop("action"),
                valid=dealt.pop("valid"),
                first=dealt.pop("first"),
                extras=dealt,
                starts={name: state[begin:end] for name, state in starts.items()},
            )
