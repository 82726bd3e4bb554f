"""A worker's networks: parameters come in, the gradient of an unroll goes out. Imports torch."""

from math import isfinite
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from starling.batches import batch_of
from starling.networks.nets import LearnerNets
from starling.params import Params
from starling.spec import Spec
from starling.types import Algorithm, Unroll

CPU = torch.device("cpu")


class Slope(NamedTuple):
    """The gradient of an unroll's losses over all parameters, and what there is to say about it."""

    values: NDArray[np.float32]  # [size]
    norm: float  # not finite where a loss is not
    metrics: dict[str, float]


class Differentiator:
    """Knows which way the parameters that it took over last would make an unroll's losses smaller.

    All losses move together, by one optimizer of somebody else's. Called from one thread.
    """

    def __init__(self, algorithm: Algorithm, spec: Spec, seed: np.random.SeedSequence) -> None:
        torch.set_num_threads(1)
        self._algorithm = algorithm
        self._generator = torch.Generator().manual_seed(_word(seed))
        self._nets = LearnerNets(algorithm.networks(spec), algorithm.targets(), spec, self._generator, CPU)
        self._groups = algorithm.groups()
        assert all(group.every == 1 and group.learning_rate is None for group in self._groups.values())
        acting = tuple(f"{name}." for name in algorithm.acting(spec))
        self._num_acting = sum(name.startswith(acting) for name, _ in self._nets.layout.entries)

    def restart(self, seed: np.random.SeedSequence) -> None:
        """Draw other random numbers from now on."""
        self._generator.manual_seed(_word(seed))

    def take(self, values: NDArray[np.float32], version: int, since: int | None) -> Params:
        """Take over all parameters, and return those that act.

        Targets follow by the versions between `since` and this one; None: they are copies at once.
        """
        params = Params(self._nets.layout, values)
        if since is None:
            self._nets.load(params)
        else:
            self._nets.advance(params, version, since)
        return self._nets.params(self._num_acting)

    def slope(self, unroll: Unroll) -> Slope:
        """Return the gradient; the arrays are its own."""
        losses = self._algorithm.losses(self._nets, batch_of([unroll], CPU), self._generator)
        self._nets.gradient.zero_()
        last = list(self._groups)[-1]
        for name, group in self._groups.items():
            inputs = self._nets.parameters(*group.networks)
            losses.groups[name].backward(inputs=inputs, retain_graph=name != last)
        values = self._nets.gradient.numpy().copy()
        told = {**losses.metrics, **{f"loss_{name}": loss.detach() for name, loss in losses.groups.items()}}
        metrics = {name: float(figure) for name, figure in told.items()}
        finite = all(isfinite(metrics[f"loss_{name}"]) for name in losses.groups)
        return Slope(values, float(np.linalg.norm(values)) if finite else float("nan"), metrics)


def _word(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])
