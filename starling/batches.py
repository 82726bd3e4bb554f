"""From whole unrolls to a batch of tensors, and what a network says about every row of it."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from starling.types import Array, Batch, Unroll

OWN_COLUMNS = ("obs", "action", "reward", "terminated", "truncated", "acted", "version", "age")


def batch_of(unrolls: Sequence[Unroll], device: torch.device) -> Batch:
    """Return unrolls of one length beside one another, `B` their copies in this order."""
    columns = {name: _beside([unroll.columns[name] for unroll in unrolls]) for name in unrolls[0].columns}
    tensor = _mover(device)
    final_at, order = _final_at(unrolls)
    final_obs = np.concatenate([unroll.final_obs for unroll in unrolls])[order]
    return Batch(
        obs=tensor(np.concatenate([columns["obs"], _beside([next_obs(unroll)[None] for unroll in unrolls])])),
        action=tensor(columns["action"]),
        reward=tensor(columns["reward"]),
        terminated=tensor(columns["terminated"]),
        truncated=tensor(columns["truncated"]),
        valid=tensor(columns["acted"]),
        weights=torch.ones(columns["acted"].shape[1], device=device),
        version=tensor(columns["version"]),
        extras={name: tensor(column) for name, column in columns.items() if name not in OWN_COLUMNS},
        starts={
            name: tensor(np.concatenate([unroll.starts[name] for unroll in unrolls])) for name in unrolls[0].starts
        },
        first=tensor(_first(columns)),
        final_at=tensor(final_at),
        final_obs=tensor(final_obs),
    )


def next_obs(unroll: Unroll) -> Array:
    """Return the observations after the last row."""
    assert unroll.next_obs is not None, "an unroll that is learned from whole must hold its next observation"
    return unroll.next_obs


def _mover(device: torch.device) -> Callable[[Array], Tensor]:
    def tensor(array: Array) -> Tensor:
        # torch can't mark a tensor read-only, so arrays that came through shared memory are copied
        shared = torch.from_numpy(array if array.flags.writeable else array.copy())
        return shared if device.type == "cpu" else shared.pin_memory().to(device, non_blocking=True)

    return tensor


def _beside(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, 1)


def _first(columns: Mapping[str, Array]) -> Array:
    """Return `[T + 1, B]` where an episode begins; behind an end, and behind a row that only reset, is another one."""
    over = columns["terminated"][-1:] | columns["truncated"][-1:] | ~columns["acted"][-1:]
    return np.concatenate([columns["age"] == 0, over])


def _final_at(unrolls: Sequence[Unroll]) -> tuple[Array, Array]:
    """Return `t * B + b` of every end, ascending, and where each was among the unrolls' own."""
    copies = [unroll.columns["acted"].shape[1] for unroll in unrolls]
    begin = np.cumsum([0, *copies])
    at = [
        unroll.final_at // count * begin[-1] + start + unroll.final_at % count
        for unroll, count, start in zip(unrolls, copies, begin, strict=False)
    ]
    joined = np.concatenate(at)
    order = np.argsort(joined)
    return joined[order], order
