"""What a policy's heads say about the next action: a categorical, several at once, or a Gaussian.

The heads' names tell which: `logits` for one discrete action, `logits_0`, `logits_1`, ... for the parts of several
that are chosen independently, `mean` and `log_std` for a box. Actors sample in numpy; `log_prob` and `entropy` take
arrays and tensors alike, of any leading axes. Where `mask` is among the outputs it says which actions are possible,
those of several parts behind one another: all others have probability 0.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import e, inf, log, pi, prod
from typing import Any

import numpy as np

from starling.networks.description import Head, Linear, Lone
from starling.spec import ArraySpec, Spec
from starling.types import Array, Outputs


def policy_heads(spec: Spec, scale: float, log_std: float) -> dict[str, Head]:
    """Return the heads of a policy for this environment's actions.

    `scale` is that of the last layer's first weights; `log_std` the first one of a Gaussian, whose spread is learned
    but is the same in every state.
    """
    if spec.num_actions:
        return {"logits": Linear(outputs=spec.num_actions, scale=scale)}
    if spec.choices:
        return {f"logits_{i}": Linear(outputs=n, scale=scale) for i, n in enumerate(spec.choices)}
    size = prod(spec.action.shape)
    return {"mean": Linear(outputs=size, scale=scale), "log_std": Lone(outputs=size, initial=log_std)}


def mask_column(spec: Spec) -> dict[str, ArraySpec]:
    """Return the column in which an algorithm keeps what was possible; none where everything is."""
    return {"mask": ArraySpec((spec.mask,), "bool")} if spec.mask else {}


def mask_in(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mask alone, if it is there: of outputs, to be stored with a step; of a batch's extras, to be put back.

    Losses that judge actions under another mask than the one that they were drawn with are of another policy.
    """
    return {"mask": known["mask"]} if "mask" in known else {}


def mask_parts(mask: Any, spec: Spec) -> list[Any]:
    """Return the masks of each of the actions that are chosen, `[..., n]`."""
    return _cut(mask, spec.choices or (spec.num_actions,))


def some_action(spec: Spec, mask: Array | None) -> Array:
    """Return an action for each row of a mask that is possible; without one, for a single copy."""
    if mask is None:
        return spec.action.zeros(1)
    first = [part.argmax(-1) for part in mask_parts(mask, spec)]
    return np.stack(first, -1) if spec.choices else first[0]


def sample(outputs: Outputs, rng: np.random.Generator) -> Array:
    """Draw an action for each of `[E, ...]`; a Gaussian's may lie beyond the box, whose edge clips it."""
    if "mean" in outputs:
        mean = outputs["mean"]
        noise = rng.standard_normal(mean.shape, np.float32)
        drawn: Array = mean + np.exp(outputs["log_std"]) * noise
        return drawn
    parts = [_draw(logits, rng)[0] for logits in _parts(outputs)]
    return parts[0] if "logits" in outputs else np.stack(parts, -1)


def sample_judged(outputs: Outputs, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return what `sample` draws, and its `log_prob`: where there are logits, for the price of drawing."""
    if "mean" in outputs:
        drawn = sample(outputs, rng)
        return drawn, log_prob(outputs, drawn)
    parts = [_draw(logits, rng) for logits in _parts(outputs)]
    rows = np.arange(len(parts[0][0]))
    log_probs = sum(shifted[rows, drawn] - np.log(total) for drawn, shifted, total in parts)
    action = parts[0][0] if "logits" in outputs else np.stack([drawn for drawn, _, _ in parts], -1)
    return action, np.asarray(log_probs, np.float32)


def mode(outputs: Outputs) -> Array:
    """Return the likeliest action for each of `[E, ...]`."""
    if "mean" in outputs:
        return outputs["mean"]
    parts: list[Array] = [logits.argmax(-1) for logits in _parts(outputs)]
    return parts[0] if "logits" in outputs else np.stack(parts, -1)


def log_prob(outputs: Mapping[str, Any], action: Any) -> Any:
    """Return the logarithm of the probability (of a Gaussian: the density) of the action that was sampled."""
    if "mean" in outputs:
        log_std = outputs["log_std"]
        off = (action - outputs["mean"]) * _exp(-log_std)
        return (-0.5 * off * off - log_std - 0.5 * log(2 * pi)).sum(-1)
    parts = _parts(outputs)
    if "logits" in outputs:
        return _pick(_log_softmax(parts[0]), action)
    return sum(_pick(_log_softmax(logits), action[..., i]) for i, logits in enumerate(parts))


def entropy(outputs: Mapping[str, Any]) -> Any:
    """Return how undecided the policy is, in nats."""
    if "mean" in outputs:
        return (outputs["log_std"] + 0.5 * log(2 * pi * e)).sum(-1)
    return sum(_undecided(_log_softmax(logits)) for logits in _parts(outputs))


def judge(outputs: Mapping[str, Any], action: Any) -> tuple[Any, Any]:
    """Return `log_prob` and `entropy`, for little more than the price of one of them."""
    if "mean" in outputs:
        return log_prob(outputs, action), entropy(outputs)
    log_probs = [_log_softmax(logits) for logits in _parts(outputs)]
    actions = [action] if "logits" in outputs else [action[..., i] for i in range(len(log_probs))]
    chosen = sum(_pick(log_prob, taken) for log_prob, taken in zip(log_probs, actions, strict=True))
    return chosen, sum(_undecided(log_prob) for log_prob in log_probs)


def _parts(outputs: Mapping[str, Any]) -> list[Any]:
    """Return the logits of each action that is chosen, -inf where it is not possible."""
    parts = _unmasked(outputs)
    if "mask" not in outputs:
        return parts
    masks = _cut(outputs["mask"], [logits.shape[-1] for logits in parts])
    return [_only(logits, mask) for logits, mask in zip(parts, masks, strict=True)]


def _unmasked(outputs: Mapping[str, Any]) -> list[Any]:
    if "logits" in outputs:
        return [outputs["logits"]]
    count = sum(name.startswith("logits_") for name in outputs)
    return [outputs[f"logits_{i}"] for i in range(count)]


def _cut(mask: Any, sizes: Sequence[int]) -> list[Any]:
    ends = list(accumulate(sizes))
    assert mask.shape[-1] == ends[-1], "a mask has an entry for every action"
    return [mask[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _only(logits: Any, mask: Any) -> Any:
    return np.where(mask, logits, -np.inf) if isinstance(logits, np.ndarray) else logits.masked_fill(~mask, -inf)


def _draw(logits: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return an action for each of `[E, A]`, the logits less the largest, and the sum of their exponentials."""
    # by the inverse of the cumulative distribution: one random number for each copy, however many actions there are;
    # float64 and "<=", so that what has no probability is never drawn
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    reached = np.exp(shifted).cumsum(-1)
    drawn: Array = (reached <= rng.random((len(logits), 1)) * reached[:, -1:]).sum(-1)
    return drawn, shifted, reached[:, -1]


def _undecided(log_probs: Any) -> Any:
    # a probability of 0 has a logarithm of -inf, and adds nothing
    return -(_exp(log_probs) * log_probs.clip(-1e4)).sum(-1)


def _log_softmax(logits: Any) -> Any:
    if not isinstance(logits, np.ndarray):
        return logits.log_softmax(-1)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _exp(x: Any) -> Any:
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def _pick(log_probs: Any, action: Any) -> Any:
    """Return the entries of the last axis that the actions choose."""
    if isinstance(log_probs, np.ndarray):
        return np.take_along_axis(log_probs, action[..., None], -1)[..., 0]
    return log_probs.gather(-1, action.long()[..., None]).squeeze(-1)
