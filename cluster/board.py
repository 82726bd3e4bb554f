"""How a run is put in words and small pictures: the live table, the plain line, the last lines."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.figures import INFERENCE, Figures, Share, kinds, total
from cluster.report import EvaluationDone, Outcome, Sample

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 12  # of a sparkline
REFUSED = {"pushes_stale": "stale", "pushes_not_finite": "not finite"}
"""What slices count of gradients that moved nothing, and how it is said; repeated ones moved something before"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is said about a run beyond its events."""

    path: Path
    goal: float | None
    samples_per_insert: float  # 0: no target


def _history() -> deque[float]:
    return deque(maxlen=WIDTH)


@dataclass(slots=True)
class Board:
    """A line for each kind of role: how fast, how it went, what it does and what it waits for; then the return."""

    subject: Subject
    returns: deque[float] = field(default_factory=_history)
    best: float = float("-inf")
    rates: dict[str, deque[float]] = field(default_factory=dict)

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Take in a return."""
        self.returns.append(evaluation.mean)
        self.best = max(self.best, evaluation.mean)

    def render(self, sample: Sample, figures: Figures) -> Panel:
        """Take in a sample and draw the table."""
        table = Table.grid(padding=(0, 2), expand=True)
        for justify in ("left", "right", "left", "left"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        table.columns[-1].ratio = 1
        counts = kinds(sample.roles)
        self._row(
            table, f"actors x{counts.get('actor', 0)}", figures.env_steps_per_s, "steps/s", time_of(figures, "actor")
        )
        if INFERENCE in counts:
            acting = f"inference x{counts[INFERENCE]}"
            self._row(table, acting, figures.copies_per_s, "copies/s", inference_line(figures))
        if is_replayed(sample):
            shards = f"replay x{counts.get('replay_server', 0)}"
            self._row(table, shards, figures.windows_per_s, "windows/s", self._replay(sample, figures))
            self._row(table, "learner", figures.updates_per_s, "updates/s", learner_line(figures))
        elif "learner" in counts:
            self._row(table, "learner", figures.updates_per_s, "updates/s", unroll_learner_line(sample, figures))
        else:
            slices = f"slices x{counts.get('param_server', 0)}"
            self._row(table, slices, figures.updates_per_s, "pushes/s", slices_line(sample, figures))
        last = number(self.returns[-1]) if self.returns else "-"
        table.add_row("return", Text(last, "bold"), sparkline(self.returns), self._returns())
        title = f"{self.subject.path.name}  {clock(sample.elapsed_s)}  {count(sample.env_steps)} steps"
        return Panel(table, title=title, title_align="left", subtitle=slowest(figures), subtitle_align="left")

    def _row(self, table: Table, name: str, rate: float, unit: str, rest: str) -> None:
        history = self.rates.setdefault(name, _history())
        history.append(rate)
        table.add_row(name, f"{number(rate)} {unit}", sparkline(history), rest)

    def _replay(self, sample: Sample, figures: Figures) -> str:
        target = f" (target {self.subject.samples_per_insert:g})" if self.subject.samples_per_insert else ""
        rows = total(sample.roles, "rows", "gauges")
        ratio = f"samples/insert {decimal(figures.samples_per_insert)}{target}"
        return joined(ratio, f"{count(rows)} rows", degraded(figures))

    def _returns(self) -> str:
        best = f"best {number(self.best)}" if self.returns else ""
        goal = f"goal {number(self.subject.goal)}" if self.subject.goal is not None else ""
        return joined(best, goal)


def plain_line(sample: Sample, figures: Figures, evaluation: EvaluationDone | None) -> str:
    """Say a sample in one line."""
    return "  ".join(
        part
        for part in (
            clock(sample.elapsed_s),
            f"{sample.env_steps:,} steps ({number(figures.env_steps_per_s)}/s)",
            f"{sample.updates:,} updates ({number(figures.updates_per_s)}/s)",
            f"samples per insert {decimal(figures.samples_per_insert)}" if is_replayed(sample) else "",
            lag(figures),
            dropped(sample),
            degraded(figures),
            f"return {number(evaluation.mean)}" if evaluation else "",
            slowest(figures),
        )
        if part
    )


def ending(outcome: Outcome, subject: Subject, checkpoint: Path | None) -> list[str]:
    """Say how a run ended, where its parameters are, and what to do next."""
    best, goal = outcome.best_mean, subject.goal
    after = f"{count(outcome.env_steps)} steps"
    reached = f"return {number(best)}" if best is not None else "never evaluated"
    said = {
        "goal": f"done  solved at {after} ({reached} >= {number(goal or 0.0)})",
        "asked": f"done  stopped after {after} as asked (best {reached})",
        "budget": f"done  budget of {after} spent (best {reached}"
        + (f" < {number(goal)})" if goal is not None else ")"),
        "interrupted": f"done  interrupted after {after} (best {reached})",
    }[outcome.reason].replace("best never", "never")
    where = f".  checkpoint {checkpoint}" if checkpoint else ""
    lines = [f"{said}, {duration(outcome.train_s)}{where}"]
    return [*lines, f"next  starling eval {subject.path} | starling show {subject.path}"] if checkpoint else lines


def time_of(figures: Figures, kind: str) -> str:
    """Say what a kind of role does most, and what it waits for most."""
    nothing = Share(state="", share=0.0)
    return joined(*(share_of(part.get(kind, nothing)) for part in (figures.works, figures.waits)))


def inference_line(figures: Figures) -> str:
    """Say how many copies were acted for at once, and where the time of who acts for them goes."""
    copies = f"batch p50 {figures.batch_p50:.0f}" if isfinite(figures.batch_p50) else ""
    return joined(copies, time_of(figures, INFERENCE))


def learner_line(figures: Figures) -> str:
    """Say how old what the learner learns from is, and where its time goes."""
    return joined(lag(figures), time_of(figures, "learner"))


def unroll_learner_line(sample: Sample, figures: Figures) -> str:
    """Say how old the unrolls are that the learner learns from, how many wait or were dropped, and where time goes."""
    queued = f"{total(sample.roles, 'queued', 'gauges')} queued"
    return joined(lag(figures), queued, dropped(sample), time_of(figures, "learner"))


def dropped(sample: Sample) -> str:
    """Say how many unrolls were never learned from."""
    stale = total(sample.roles, "unrolls_stale")
    return f"{count(stale)} stale" if stale else ""


def slices_line(sample: Sample, figures: Figures) -> str:
    """Say how late gradients come, how many moved nothing, and where the slices' time goes."""
    refused = [(total(sample.roles, name), why) for name, why in REFUSED.items()]
    counted = (f"{count(number)} {why}" for number, why in refused if number)
    return joined(lag(figures), *counted, time_of(figures, "param_server"))


def is_replayed(sample: Sample) -> bool:
    """Whether the run's steps are learned from through a replay."""
    return "replay_server" in kinds(sample.roles)


def lag(figures: Figures) -> str:
    """Say how many versions old the learned-from steps were."""
    return f"lag p50 {figures.lag_p50:.0f} p95 {figures.lag_p95:.0f}" if isfinite(figures.lag_p50) else ""


def degraded(figures: Figures) -> str:
    """Say how many shards the learner does without."""
    down = figures.degraded_shards
    return f"{down} {'shard does' if down == 1 else 'shards do'} not answer" if down else ""


def slowest(figures: Figures) -> str:
    """Say which kind of role has the least time to spare."""
    kind = figures.slowest
    return f"slowest: {kind} (busy {figures.busy[kind]:.0%})" if kind else ""


def share_of(share: Share) -> str:
    """Say a share of somebody's time."""
    return f"{share.state.replace('_', ' ')} {share.share:.0%}" if share.state else ""


def joined(*parts: str) -> str:
    """Put what there is to say side by side."""
    return " · ".join(part for part in parts if part)


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """Draw values as bars from zero (or the smallest, when that is below) to the largest."""
    known = [value for value in values if isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    low = min(low, 0.0)
    span = (high - low) or 1.0
    return "".join(
        BARS[int((value - low) / span * (len(BARS) - 1) + 0.5)] if isfinite(value) else " " for value in values
    )


def number(value: float) -> str:
    """Write 4,120 and 0.38: as many digits as matter."""
    if not isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def decimal(value: float) -> str:
    """Write a ratio."""
    return f"{value:.2f}" if isfinite(value) else "-"


def count(value: int) -> str:
    """Write 96k and 1.2M."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}" if value < 100 * size else f"{value // size}{suffix}"
    return str(value)


def clock(seconds: float) -> str:
    """Write 00:01:12."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def duration(seconds: float) -> str:
    """Write 4.2 s, 2 min 40 s, 1 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60} min"
