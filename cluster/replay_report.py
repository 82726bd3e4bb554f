"""What a shard holds, put in words and bars."""

from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10
from typing import Any

import numpy as np

from cluster.board import joined, number
from cluster.replay_view import Held, HeldWindow
from starling.types import Array

BAR = 40  # characters
STEPS = 8  # of a window that are shown


def figures_of(shard: int, held: Held, row_bytes: int) -> dict[str, Any]:
    """Return everything that can be said of a shard's contents, as JSON could hold it."""
    version, age = held.column("version"), held.column("age")
    own = version[version > 0]
    return {
        "shard": shard,
        "rows": held.end - held.oldest,
        "capacity": held.capacity,
        "windows": len(held.rows),
        "row_range": [held.oldest, held.end],
        "memory_bytes": (held.end - held.oldest) * row_bytes,
        "disk_bytes": held.disk_bytes,
        "segments": [
            {"file": part.file, "bytes": part.bytes, "rows": [part.first_row, part.end_row]} for part in held.segments
        ],
        "versions": [int(own.min()), int(own.max())] if own.size else None,
        "recorded_steps": int(version.size - own.size),
        "age": {"median": int(np.median(age)), "max": int(age.max())} if age.size else None,
        "priorities": _priorities(held.priorities),
        "times_sampled": _draws(held.times_sampled),
        "as_of": held.snapshot,
    }


def lines_of(figures: Mapping[str, Any], bars: bool) -> Iterator[str]:
    """Say what a shard holds; `bars` draws the histograms."""
    rows, capacity, segments = figures["rows"], figures["capacity"], len(figures["segments"])
    yield joined(
        f"shard {figures['shard']}  {rows:,} of {capacity:,} rows ({rows / capacity:.0%})",
        f"{figures['windows']:,} windows",
        f"{size(figures['memory_bytes'])} in memory",
        f"{size(figures['disk_bytes'])} on disk in {segments} segment{'s' * (segments != 1)}",
    )
    if versions := figures["versions"]:
        yield f"  versions    {versions[0]:,} to {versions[1]:,}"
    if recorded := figures["recorded_steps"]:
        yield f"  recorded    {recorded:,} steps of no version"
    if age := figures["age"]:
        yield f"  age         median {age['median']:,}, at most {age['max']:,} steps into an episode"
    if figures["windows"]:
        yield f"  priorities  {as_of(figures['as_of'])}"
        yield from _histogram(figures["priorities"], bars)
    if figures["times_sampled"]:
        yield f"  sampled     times that a window was drawn, {as_of(figures['as_of'])}"
        yield from _histogram(figures["times_sampled"], bars)


def as_of(snapshot: str | None) -> str:
    """Say how fresh priorities are: the log does not hold them."""
    return f"as of checkpoint {snapshot}" if snapshot else "as the actors gave them: there is no checkpoint yet"


def window_lines(windows: Sequence[HeldWindow]) -> Iterator[str]:
    """Show windows, a line each below a line of headings."""
    if windows:
        names = f"{'row':>9} {'actor':>7} {'copy':>4} {'age':>6} {'version':>8} {'priority':>9} {'sampled':>7}"
        yield f"  {names}  action:reward"
    for window in windows:
        sampled = "-" if window.sampled is None else str(window.sampled)
        yield (
            f"  {window.row:>9} {window.actor:>7} {window.copy:>4} {window.age:>6} {window.version or '-':>8} "
            f"{number(window.priority):>9} {sampled:>7}  {_steps(window)}"
        )


def size(count: float) -> str:
    """Write 512 B, 1.5 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f} B"


def _steps(window: HeldWindow) -> str:
    pairs = [f"{_action(action)}:{reward:g}" for action, reward in zip(window.actions, window.rewards, strict=True)]
    rest = [f"... {len(pairs) - STEPS} more"] if len(pairs) > STEPS else []
    return " ".join([*pairs[:STEPS], *rest, window.ended]).strip()


def _action(action: Any) -> str:
    return f"({','.join(f'{part:.2g}' for part in np.ravel(action))})" if isinstance(action, list) else str(action)


def _priorities(priorities: Array) -> dict[str, int]:
    """Count priorities by their size: 0, and then from 1 to 3 to 10 to 30 of whatever power of ten they have."""
    positive = priorities[priorities > 0.0]
    counts = {"0": int(priorities.size - positive.size)} if positive.size < priorities.size else {}
    if not positive.size:
        return counts
    low, high = (floor(log10(end)) for end in (positive.min(), positive.max()))
    edges = np.array([step * 10.0**power for power in range(low, high + 2) for step in (1, 3)])
    bins = np.searchsorted(edges, positive, side="right") - 1
    for bin_, found in enumerate(np.bincount(bins)[bins.min() :].tolist(), start=int(bins.min())):
        counts[f"{number(edges[bin_])} to {number(edges[bin_ + 1])}"] = found
    return counts


def _draws(times: Array) -> dict[str, int]:
    """Count windows by how often they were drawn: 0, 1, 2 to 3, 4 to 7, ..."""
    if not times.size:
        return {}
    counts = np.bincount(np.frexp(times.astype(np.float64))[1])
    names = [
        ("0" if not bin_ else "1" if bin_ == 1 else f"{2 ** (bin_ - 1)} to {2**bin_ - 1}")
        for bin_ in range(len(counts))
    ]
    return dict(zip(names, counts.tolist(), strict=True))


def _histogram(counts: Mapping[str, int], bars: bool) -> Iterator[str]:
    if not counts:
        return
    wide, most = max(map(len, counts)), max(counts.values()) or 1
    for name, found in counts.items():
        bar = f"  {'█' * -(-found * BAR // most)}" if bars else ""
        yield f"    {name:>{wide}}  {found:>9,}{bar}"
