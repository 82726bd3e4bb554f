"""What follows from two samples of a run: rates, samples per insert, lag, and who holds the others up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster.report import Sample
from starling.metrics import quantile

INFERENCE = "inference"
"""The kind of role that acts for actors without networks"""

Snapshots = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The largest part of a kind of role's time that is of one sort, 0 to 1."""

    state: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A moment's rates, all over the time since the moment before. NaN where nothing can be said."""

    env_steps_per_s: float
    updates_per_s: float
    windows_per_s: float  # sampled
    samples_per_insert: float  # by the learner's account, which outlives shards and restarts: it is no rate
    degraded_shards: int  # that do not answer the learner
    lag_p50: float  # versions
    lag_p95: float
    copies_per_s: float  # that inference roles acted for
    batch_p50: float  # copies that they acted for at once
    busy: Mapping[str, float]  # by kind of role: the share of its time in which it neither waits nor idles
    works: Mapping[str, Share]  # what it does most
    waits: Mapping[str, Share]  # what it waits for most
    gauges: Mapping[str, float]  # "learner/loss_q": the roles' own figures, averaged over a kind

    @property
    def slowest(self) -> str:
        """The kind of role that has the least time to spare; empty before anybody worked."""
        return max(self.busy, key=lambda kind: self.busy[kind]) if any(self.busy.values()) else ""

    def scalars(self) -> dict[str, float]:
        """Return everything by tag, as curves are drawn of it."""
        names = "env_steps_per_s", "updates_per_s", "windows_per_s", "samples_per_insert", "lag_p50", "lag_p95"
        busy = {f"busy/{kind}": share for kind, share in self.busy.items()}
        return {f"run/{name}": getattr(self, name) for name in names} | busy | dict(self.gauges)


def figures(before: Sample | None, now: Sample) -> Figures:
    """Derive a moment's figures; without a moment before, since the start."""
    past: Snapshots = before.roles if before else {}
    duration = now.elapsed_s - (before.elapsed_s if before else 0.0)
    seconds = {kind: _seconds(past, now.roles, kind) for kind in kinds(now.roles)}
    sampled = total(now.roles, "windows_sampled")
    lag = np.maximum(_histogram(now.roles, "lag") - _histogram(past, "lag"), 0)  # a restart begins anew
    batches = _histogram(now.roles, "batch_copies") - _histogram(past, "batch_copies")
    return Figures(
        env_steps_per_s=_ratio(now.env_steps - (before.env_steps if before else 0), duration),
        updates_per_s=_ratio(now.updates - (before.updates if before else 0), duration),
        windows_per_s=_ratio(sampled - total(past, "windows_sampled"), duration),
        samples_per_insert=_ratio(total(now.roles, "sampled", "gauges"), total(now.roles, "inserted", "gauges")),
        degraded_shards=total(now.roles, "degraded_shards", "gauges"),
        lag_p50=quantile(lag, 0.5),
        lag_p95=quantile(lag, 0.95),
        copies_per_s=_ratio(total(now.roles, "copies") - total(past, "copies"), duration),
        batch_p50=quantile(np.maximum(batches, 0), 0.5),
        busy={kind: _busy(states) for kind, states in seconds.items()},
        works={kind: _largest(states, waiting=False) for kind, states in seconds.items()},
        waits={kind: _largest(states, waiting=True) for kind, states in seconds.items()},
        gauges=_gauges(now.roles),
    )


def kind_of(role: str) -> str:
    """Return `actor` for `actor[3]`."""
    return role.partition("[")[0]


def kinds(roles: Snapshots) -> dict[str, int]:
    """Count the roles of each kind."""
    counts: dict[str, int] = {}
    for role in roles:
        counts[kind_of(role)] = counts.get(kind_of(role), 0) + 1
    return counts


def total(roles: Snapshots, name: str, of: Literal["counts", "gauges"] = "counts") -> int:
    """Sum a counter or a gauge over all roles that have it."""
    return sum(int(snapshot.get(of, {}).get(name, 0)) for snapshot in roles.values())


def _seconds(past: Snapshots, now: Snapshots, kind: str) -> dict[str, float]:
    """Return a kind's seconds by state; a role that was restarted in between counts from its new start."""
    seconds: dict[str, float] = {}
    for role, snapshot in now.items():
        if kind_of(role) == kind:
            old = past.get(role, {}).get("time_s", {})
            for state, time_s in snapshot.get("time_s", {}).items():
                spent = time_s - old.get(state, 0.0)
                seconds[state] = seconds.get(state, 0.0) + (spent if spent >= 0.0 else time_s)
    return seconds


def _spare(state: str) -> bool:
    return state == "idle" or state.startswith("waiting")


def _busy(seconds: Mapping[str, float]) -> float:
    worked = sum(time_s for state, time_s in seconds.items() if not _spare(state))
    everything = sum(seconds.values())
    return worked / everything if everything else 0.0


def _largest(seconds: Mapping[str, float], waiting: bool) -> Share:
    chosen = {state: time_s for state, time_s in seconds.items() if time_s > 0.0 and _spare(state) == waiting}
    if not chosen:
        return Share(state="", share=0.0)
    state = max(chosen, key=lambda state: chosen[state])
    return Share(state=state, share=chosen[state] / sum(seconds.values()))


def _gauges(roles: Snapshots) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for role, snapshot in roles.items():
        for name, value in snapshot.get("gauges", {}).items():
            values.setdefault(f"{kind_of(role)}/{name}", []).append(value)
    return {tag: float(np.mean(found)) for tag, found in values.items()}


def _histogram(roles: Snapshots, name: str) -> Any:
    counts = [snapshot.get("histograms", {}).get(name) for snapshot in roles.values()]
    return sum((np.asarray(count, np.int64) for count in counts if count is not None), np.zeros(1, np.int64))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
