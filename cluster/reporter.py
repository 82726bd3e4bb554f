"""Where a run's events go: into its folder, into TensorBoard files, and before somebody's eyes."""

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from cluster.checkpoints import Checkpoint
from cluster.config import Config, ReplayRun
from cluster.contents import replay_folder
from cluster.figures import Figures, figures
from cluster.report import CheckpointDue, EpisodesEnded, EvaluationDone, Event, Noted, Outcome, Sample
from cluster.resume import all_settings
from cluster.rows import as_row
from cluster.run_folder import RunFolder
from cluster.snapshots import prune_unnamed
from starling.errors import RunError


class View(Protocol):
    """Shows a run while it is made."""

    def sampled(self, sample: Sample, figures: Figures) -> None:
        """Show a sample's figures."""

    def evaluated(self, evaluation: EvaluationDone) -> None:
        """Show an evaluation."""

    def warned(self, sentence: str) -> None:
        """Say what went wrong while the run goes on."""

    def ended(self, outcome: Outcome, checkpoint: Path | None) -> None:
        """Say how the run ended, and where its best checkpoint is."""

    def close(self) -> None:
        """Give back what is held, a terminal for one, when the run fails."""


class Scalars(Protocol):
    """Where figures over time go, by tag: TensorBoard files, or any other tracker."""

    def add(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Record figures at this count of steps."""

    def close(self) -> None:
        """Write what is still held back."""


class Reporter:
    """Puts each event where it belongs. Called from the runtime's one thread; nothing here waits but for the disk."""

    def __init__(self, folder: RunFolder, view: View, scalars: Scalars, config: Config[Any]) -> None:
        self._folder = folder
        self._view = view
        self._scalars = scalars
        self._settings = all_settings(config)
        self._replay = replay_folder(config.replay, folder.path) if isinstance(config, ReplayRun) else None
        self._keep = config.checkpoint.keep
        self._last: Sample | None = None
        self._owed: dict[bool, CheckpointDue] = {}  # the newest to go on from, and the best parameters alone

    @property
    def is_saved(self) -> bool:
        """Whether the disk has taken every checkpoint that was due, or a later one instead."""
        return not self._owed

    def __call__(self, event: Event) -> None:
        """Record an event and show it."""
        match event:
            case Sample():
                self._sample(event)
            case EpisodesEnded(returns=returns, lengths=lengths):
                head = round(event.elapsed_s, 3), event.env_steps, event.actor
                ended = zip(map(float, returns), map(int, lengths), strict=True)
                self._folder.add_episodes((*head, *episode) for episode in ended)
            case EvaluationDone():
                self._folder.add_event({"event": "evaluation", **as_row(event)})
                self._scalars.add(event.env_steps, {"evaluation/return_mean": event.mean})
                self._view.evaluated(event)
            case CheckpointDue():
                self._checkpoint(event)
            case Noted(elapsed_s=elapsed_s, what=what, facts=facts):
                self._folder.add_event({"event": what, "elapsed_s": elapsed_s, **facts})

    def ended(self, outcome: Outcome) -> None:
        """Record how the run ended, and say so."""
        self._folder.add_event({"event": "ended", **as_row(outcome)})
        self._scalars.close()
        self._view.ended(outcome, self._folder.checkpoints.best())

    def failed(self, error: BaseException) -> None:
        """Record what ended the run before its time, with the traceback."""
        lines = "".join(traceback.format_exception(error))
        self._folder.add_event({"event": "failed", "error": str(error) or type(error).__name__, "traceback": lines})
        self._scalars.close()
        self._view.close()

    def _sample(self, sample: Sample) -> None:
        derived = figures(self._last, sample)
        self._last = sample
        self._folder.add_metrics({**as_row(sample), "figures": asdict(derived)})
        self._scalars.add(sample.env_steps, derived.scalars())
        self._view.sampled(sample, derived)

    def _checkpoint(self, event: CheckpointDue) -> None:
        """Save what is due, and what the disk refused before; training goes on whatever it says."""
        self._owed.pop(bool(event.states), None)
        self._owed[bool(event.states)] = event
        for kind, due in list(self._owed.items()):
            try:
                self._save(due)
            except OSError as error:
                said = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
                self._folder.add_event({"event": "checkpoint_failed", **_facts(due), "error": said})
                self._view.warned(f"checkpoint of update {due.updates} NOT saved: {said}; the next one tries again")
            else:
                del self._owed[kind]

    def _save(self, due: CheckpointDue) -> None:
        facts = {**_facts(due), "settings": self._settings} if due.states else _facts(due)
        saved = Checkpoint(params=due.params, facts=facts, states=due.states)
        path = self._folder.checkpoints.save(saved, best=due.best)
        self._folder.add_event({"event": "checkpoint", **_facts(due), "best": due.best, "path": path.name})
        self._folder.checkpoints.prune(self._keep)
        if due.states and self._replay is not None:
            with suppress(RunError, OSError):  # what cannot be told or removed stays; the next checkpoint tries again
                prune_unnamed(self._replay, self._folder.checkpoints.snapshots())


def _facts(due: CheckpointDue) -> dict[str, Any]:
    return {key: value for key, value in as_row(due).items() if key not in ("params", "best", "states")}
