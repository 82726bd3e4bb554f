"""A run before somebody's eyes: a live table, plain lines, JSON lines, or nothing. No thread: events drive it."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live

from cluster.board import Board, Subject, ending, plain_line
from cluster.figures import Figures
from cluster.report import EvaluationDone, Outcome, Sample
from cluster.reporter import View
from cluster.rows import as_row, json_line

Mode = Literal["live", "plain", "json", "quiet"]
PLAIN_EVERY_S = 10.0


def make_view(mode: Mode, subject: Subject, console: Console) -> View:
    """Return the view that was asked for; `live` needs a terminal, and is plain without one."""
    match mode:
        case "live" if console.is_terminal:
            return LiveView(subject, console)
        case "live" | "plain":
            return PlainView(subject, console)
        case "json":
            return JsonView(console)
        case "quiet":
            return QuietView()


class LiveView:
    """A table of the roles, drawn anew in its place with each sample."""

    def __init__(self, subject: Subject, console: Console) -> None:
        self._subject = subject
        self._board = Board(subject)
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def sampled(self, sample: Sample, figures: Figures) -> None:
        """Draw the table."""
        self._live.start()  # once; a run that fails before its first sample leaves no empty table
        self._live.update(self._board.render(sample, figures), refresh=True)

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Keep the return for the next drawing."""
        self._board.evaluated(evaluation)

    def warned(self, sentence: str) -> None:
        """Print above the table."""
        _print(self._console, sentence)

    def ended(self, outcome: Outcome, checkpoint: Path | None) -> None:
        """Leave the last table standing, and say how the run ended."""
        self.close()
        _print(self._console, *ending(outcome, self._subject, checkpoint))

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


class PlainView:
    """A line every ten seconds: for logs, pipes, and screen readers."""

    def __init__(self, subject: Subject, console: Console) -> None:
        self._subject = subject
        self._console = console
        self._due_s = 0.0
        self._evaluation: EvaluationDone | None = None

    def sampled(self, sample: Sample, figures: Figures) -> None:
        """Print a line if one is due."""
        if sample.elapsed_s >= self._due_s:
            self._due_s = sample.elapsed_s + PLAIN_EVERY_S
            _print(self._console, plain_line(sample, figures, self._evaluation))

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Keep the return for the next line."""
        self._evaluation = evaluation

    def warned(self, sentence: str) -> None:
        """Print it at once."""
        _print(self._console, sentence)

    def ended(self, outcome: Outcome, checkpoint: Path | None) -> None:
        """Say how the run ended."""
        _print(self._console, *ending(outcome, self._subject, checkpoint))

    def close(self) -> None:
        """Nothing is held open."""


class JsonView:
    """A line of JSON for each sample and evaluation, and one for the end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def sampled(self, sample: Sample, figures: Figures) -> None:
        """Print the clocks and the figures; the roles' counters are in metrics.jsonl."""
        clocks = {"elapsed_s": sample.elapsed_s, "env_steps": sample.env_steps, "updates": sample.updates}
        _print(self._console, json_line({"event": "sample", **clocks, **figures.scalars()}))

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Print an evaluation."""
        _print(self._console, json_line({"event": "evaluation", **as_row(evaluation)}))

    def warned(self, sentence: str) -> None:
        """Print what went wrong."""
        _print(self._console, json_line({"event": "warning", "what": sentence}))

    def ended(self, outcome: Outcome, checkpoint: Path | None) -> None:
        """Print the outcome."""
        where = str(checkpoint) if checkpoint else None
        _print(self._console, json_line({"event": "ended", **as_row(outcome), "checkpoint": where}))

    def close(self) -> None:
        """Nothing is held open."""


class QuietView:
    """Nothing: the exit code and the run's folder say it all."""

    def sampled(self, sample: Sample, figures: Figures) -> None:
        """Say nothing."""

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Say nothing."""

    def warned(self, sentence: str) -> None:
        """Say nothing."""

    def ended(self, outcome: Outcome, checkpoint: Path | None) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing is held open."""


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
