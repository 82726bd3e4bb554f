"""Networks as torch modules; the names of their parameters are those that `numpy_forward` reads."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from starling.networks.description import (
    CONVOLUTIONS,
    FURTHEST,
    SMALLEST_VARIANCE,
    Dueling,
    Head,
    Linear,
    Lone,
    Lstm,
    Mlp,
    NatureCnn,
    Network,
    Torso,
)
from starling.spec import Spec, measured


class _Tanh(torch.autograd.Function):
    """The hyperbolic tangent by numpy, which is several times as fast as torch's on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        back: Tensor = torch.ops.aten.tanh_backward(gradient, y)  # torch's own in one pass, with a gradient of its own
        return back


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # an export must see an operation of torch's
        return torch.tanh(x)
    y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
    return y


ACTIVATIONS = {"relu": torch.relu, "tanh": tanh}


def encode(obs: Tensor, spec: Spec, flat: bool) -> Tensor:
    """Return observations as float inputs: integers one-hot, bytes scaled to [0, 1], made vectors if `flat`."""
    lead = obs.shape[: obs.ndim - len(spec.obs.shape)]
    if spec.classes:
        digits = obs.reshape(*lead, len(spec.classes)).long()
        hot = [nn.functional.one_hot(digits[..., i], n) for i, n in enumerate(spec.classes)]
        return torch.cat(hot, -1).float()
    floats = obs.float() / 255.0 if obs.dtype == torch.uint8 else obs.float()
    return floats.reshape(*lead, spec.features) if flat else floats


class MomentsModule(nn.Module):
    """Mean and variance of all rows that were observed, and how many they were; parameters without a gradient.

    They are float32 as all parameters are. Past 2^24 rows the count is rounded, and stands still once a batch is less
    than half its spacing: from then on the oldest rows are slowly forgotten.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.var = nn.Parameter(torch.ones(size), requires_grad=False)
        self.count = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the standard deviation for each of [..., F], [..., size]."""
        return self.deviation().expand(*features.shape[:-1], -1)

    def deviation(self) -> Tensor:
        """Return the standard deviation, [size]; 1 before anything was observed."""
        return torch.sqrt(self.var + SMALLEST_VARIANCE)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return inputs [..., size] in standard deviations from the mean, clipped."""
        return ((inputs - self.mean) / self.deviation()).clamp(-FURTHEST, FURTHEST)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Merge the moments of more rows [N, size] into those of all before (Chan et al., 1983).

        Rows of which anything is not finite leave them as they are: no later ones would bring them back.
        """
        rows = len(values)
        if not rows:
            return
        var, mean = torch.var_mean(values.double(), 0, correction=0)
        if not var.isfinite().all():
            return
        before = self.count.double()
        share = rows / (before + rows)
        off = mean - self.mean
        self.var.copy_((1.0 - share) * self.var + share * var + share * (1.0 - share) * off.square())
        self.mean.copy_(self.mean + share * off)
        self.count.copy_(before + rows)


class MlpModule(nn.Module):
    """Linear layers with an activation behind each, over inputs that are normalised first if that is wanted."""

    def __init__(self, torso: Mlp, spec: Spec) -> None:
        super().__init__()
        assert not torso.normalise or measured(spec), "integers and bytes are not normalised"
        widths = [spec.features, *torso.hidden]
        self.norm = MomentsModule(spec.features) if torso.normalise else None
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.features = widths[-1]
        self._activation = ACTIVATIONS[torso.activation]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [..., F] to features."""
        x = inputs if self.norm is None else self.norm.normalise(inputs)
        for layer in self.layers:
            x = self._activation(layer(x))
        return x


class NatureCnnModule(nn.Module):
    """Three convolutions over [..., C, H, W] and one linear layer, ReLU behind each."""

    def __init__(self, torso: NatureCnn, spec: Spec) -> None:
        super().__init__()
        channels, height, width = spec.obs.shape
        inputs = [channels, *(outputs for outputs, _, _ in CONVOLUTIONS)]
        layers = zip(inputs, CONVOLUTIONS, strict=False)
        self.convs = nn.Sequential(*(part for i, conv in layers for part in (nn.Conv2d(i, *conv), nn.ReLU())))
        with torch.no_grad():
            flat = self.convs(torch.zeros(1, channels, height, width)).numel()
        self.linear = nn.Linear(flat, torso.features)
        self.features = torso.features

    def forward(self, inputs: Tensor) -> Tensor:
        """Map frames [..., C, H, W] to features."""
        lead = inputs.shape[:-3]
        x = self.convs(inputs.reshape(-1, *inputs.shape[-3:]))
        return torch.relu(self.linear(x.flatten(1))).reshape(*lead, self.features)


class DuelingModule(nn.Module):
    """State value and advantages joined to Q; subtracting the mean makes the two identifiable."""

    def __init__(self, features: int, head: Dueling) -> None:
        super().__init__()
        self.streams = nn.Linear(features, 1 + head.actions)  # the value first, then the advantages

    def forward(self, features: Tensor) -> Tensor:
        """Map features to Q, [..., A]."""
        streams = cast(Tensor, self.streams(features))
        value, advantage = streams[..., :1], streams[..., 1:]
        return value + advantage - advantage.mean(-1, keepdim=True)


class LoneModule(nn.Module):
    """Values of their own, the same for every observation."""

    def __init__(self, head: Lone) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((head.outputs,), head.initial))

    def forward(self, features: Tensor) -> Tensor:
        """Return the values for each of [..., F], [..., outputs]."""
        return self.values.expand(*features.shape[:-1], -1)


class LstmModule(nn.Module):
    """A long short-term memory over time (Hochreiter and Schmidhuber, 1997), its gates in torch's order."""

    def __init__(self, features: int, memory: Lstm) -> None:
        super().__init__()
        self.inputs = nn.Linear(features, 4 * memory.size)
        self.recurrent = nn.Linear(memory.size, 4 * memory.size, bias=False)
        self.features = memory.size

    def forward(self, features: Tensor, state: Tensor, first: Tensor | None) -> Tensor:
        """Map features [T, B, F] and the state [B, 2, H] before them to the states after each step, [T, B, 2, H]."""
        told = self.inputs(features)  # of all steps at once: only what depends on the step before must wait for it
        said, cell = state.unbind(-2)
        keep = None if first is None else (~first).to(state.dtype)[..., None]  # [T, B, 1]
        states = []
        for t in range(len(told)):
            if keep is not None:
                said, cell = said * keep[t], cell * keep[t]
            take, hold, new, give = (told[t] + self.recurrent(said)).chunk(4, -1)
            cell = torch.sigmoid(hold) * cell + torch.sigmoid(take) * torch.tanh(new)
            said = torch.sigmoid(give) * torch.tanh(cell)
            states.append(torch.stack((said, cell), -2))
        return torch.stack(states)


class NetworkModule(nn.Module):
    """Observations in, a dict of head outputs out; any leading axes."""

    def __init__(self, network: Network, spec: Spec) -> None:
        super().__init__()
        self._spec = spec
        self.torso = _torso(network.torso, spec)
        self.heads = _heads(self.torso.features, network)

    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        """Map observations to each head's outputs."""
        features = self.torso(encode(obs, self._spec, flat=isinstance(self.torso, MlpModule)))
        return {name: head(features) for name, head in self.heads.items()}


class RecurrentModule(nn.Module):
    """Steps of several copies in, [T, B, ...], with the state before them; outputs and the state after each step out.

    Where `first` is True an episode begins: the step sees none of what was before it.
    """

    def __init__(self, network: Network, spec: Spec) -> None:
        super().__init__()
        assert network.memory is not None
        self._spec = spec
        self.torso = _torso(network.torso, spec)
        self.memory = LstmModule(self.torso.features, network.memory)
        self.heads = _heads(self.memory.features, network)

    def forward(self, obs: Tensor, state: Tensor, first: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return each head's outputs [T, B, ...], and the states [T, B, 2, H]."""
        features = self.torso(encode(obs, self._spec, flat=isinstance(self.torso, MlpModule)))
        states = self.memory(features, state, first)
        return {name: head(states[..., 0, :]) for name, head in self.heads.items()}, states


def _torso(torso: Torso, spec: Spec) -> MlpModule | NatureCnnModule:
    return MlpModule(torso, spec) if isinstance(torso, Mlp) else NatureCnnModule(torso, spec)


def _heads(features: int, network: Network) -> nn.ModuleDict:
    return nn.ModuleDict({name: _head(features, head) for name, head in network.heads.items()})


def _head(features: int, head: Head) -> nn.Module:
    if isinstance(head, Linear):
        return nn.Linear(features, head.outputs, bias=head.bias)
    if isinstance(head, Dueling):
        return DuelingModule(features, head)
    return LoneModule(head) if isinstance(head, Lone) else MomentsModule(head.outputs)


AnyModule = NetworkModule | RecurrentModule


def build_modules(
    networks: Mapping[str, Network], spec: Spec, generator: torch.Generator | None = None
) -> dict[str, AnyModule]:
    """Build every network; with a generator their weights are drawn from it, in order."""
    modules = {name: build_module(network, spec) for name, network in networks.items()}
    if generator is not None:
        for name, module in modules.items():
            _initialise(list(module.modules()), generator)
            _scale(module, networks[name])
    return modules


def build_module(network: Network, spec: Spec) -> AnyModule:
    """Build one network, with or without a memory."""
    return RecurrentModule(network, spec) if network.memory else NetworkModule(network, spec)


def _initialise(layers: Sequence[nn.Module], generator: torch.Generator) -> None:
    """Draw weights and biases uniformly within 1/sqrt(fan in), torch's own rule, but from our generator."""
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1.0 / sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _scale(module: AnyModule, network: Network) -> None:
    with torch.no_grad():
        for name, head in network.heads.items():
            if isinstance(head, Linear) and head.scale != 1.0:
                for parameter in module.heads[name].parameters():
                    parameter.mul_(head.scale)
