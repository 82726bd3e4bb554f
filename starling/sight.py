"""What a network says about every row of whole unrolls, and about the last observation of every episode in them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from starling.types import Batch, Nets


class Sight(NamedTuple):
    """Outputs by head, of the rows and of what was seen after the episodes that ended."""

    rows: Mapping[str, Any]  # [T + 1, B, ...]
    final: Mapping[str, Any]  # [F, ...] in the order of `batch.final_at`, without a graph; {} if nobody asked


def see(nets: Nets, name: str, batch: Batch, ends: bool = True) -> Sight:
    """Run a network over a batch, and over last observations if `ends`; one with a memory forgets as episodes begin.

    It values a last observation with what it remembered after the episode's last step.
    """
    if name not in batch.starts:
        return Sight(nets[name](batch.obs), nets.frozen(name, batch.final_obs) if ends else {})
    rows, states = nets[name](batch.obs, batch.starts[name], batch.first)
    if not ends:
        return Sight(rows, {})
    after = states.detach().flatten(0, 1)[batch.final_at]
    final, _ = nets.frozen(name, batch.final_obs[None], after)
    return Sight(rows, {head: output[0] for head, output in final.items()})


def successors(batch: Batch, value: Any, final_value: Any) -> Any:
    """Return the value of what each step led to, `[T, B]`, without a graph.

    That is the next row's, `value` being `[T + 1, B]`; where an episode ended, that of its own last observation, and 0
    where it terminated.
    """
    assert value.shape == batch.first.shape, "values must be [T + 1, B]"
    after = value[1:].detach().clone()
    after.view(-1)[batch.final_at] = final_value.detach().to(after.dtype)
    return after * ~batch.terminated
