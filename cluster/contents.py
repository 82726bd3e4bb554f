"""What a run's shards begin with, and what outlives them: which folder holds it, and how it gets into a shard."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from replay_server.config import ReplayConfig
from replay_server.durable import DurableShard
from replay_server.journal import Journal
from replay_server.log import LIVE, has_log
from replay_server.restoring import Restored, rehash, restore_exactly, restore_live, restore_newest, settle
from replay_server.shard import ReplayShard
from replay_server.snapshots import SNAPSHOTS
from starling.metrics import Clock
from starling.state import State
from starling.types import SampleRequest

Contents = Literal["new", "exact", "newest", "moved_exact", "moved_newest"]
"""nothing; what a checkpoint's snapshot holds; that and what was inserted since; or, as there are other shards now,
their part of either"""

SHARD = "replay_server"
MOVED = "moved"  # beside the shards: what they held when there were others; in a shard: which part of it is there


class News(NamedTuple):
    """Something that a role tells and `events.jsonl` keeps."""

    what: str
    facts: Mapping[str, Any]


Tell = Callable[[News], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a shard of a run needs to know of the run's replay."""

    folder: str = ""  # where the shards' folders lie; empty: nothing outlives a shard
    contents: Contents = "new"
    states: Mapping[str, State] = field(default_factory=dict)  # of the shards, as the checkpoint names them
    heard: int = 0  # the largest origin that a learner has heard of

    @property
    def is_moved(self) -> bool:
        """Whether the contents are those of other shards."""
        return self.contents.startswith("moved")

    def origin(self, index: int, generation: int) -> int:
        """Return what tells this incarnation of a shard from all before, whose keys it goes on with if it can."""
        known = [int(state.meta["origin"]) for state in self.states.values()]
        own = self.meta(index) if self.contents in ("exact", "newest") else None
        first = int(own["origin"]) if own else max([self.heard, *known]) + bool(self.states)
        return first + generation

    def meta(self, index: int) -> Mapping[str, Any] | None:
        """Return what the checkpoint says of a shard's snapshot; None if there is none."""
        state = self.states.get(f"{SHARD}[{index}]")
        return state.meta if state is not None and "snapshot" in state.meta else None

    def durable(
        self, shard: ReplayShard, index: int, generation: int, config: ReplayConfig, clock: Clock, background: bool
    ) -> tuple[DurableShard, Restored | None]:
        """Return a new shard with what it is to hold, whose inserts outlive it from now on."""
        journals = bool(self.folder) and config.durability != "none"
        own = shard_folder(self.folder, index)
        journal = partial(Journal, own, config, clock)
        if self._moves(own, config) if journals else self.is_moved and not generation:
            forget(own)
            first = DurableShard(shard, journal(background=False) if journals else None, clock)
            restored: Restored | None = self._move(first, index, config)
            first.close()
            if journals:
                (own / MOVED).write_text(self._move_to(config), "utf-8")
        else:
            restored = self._restore(shard, own, index, generation, journals)
        if restored is not None and (generation or self.is_moved):
            _take_nothing_yet(shard)
        if not generation:
            shard.forget_writers()  # a run that goes on twice from one checkpoint numbers them alike
        return DurableShard(shard, journal(background=background) if journals else None, clock), restored

    def prepare(self, config: ReplayConfig) -> None:
        """Put aside what the shards hold if it is to be moved to others; called before any of them begins.

        It stays aside until a checkpoint names what the others hold. Whoever goes on before finds it there, and shards
        that were done.
        """
        if not self.is_moved:
            return
        aside, target = Path(self.folder) / MOVED, self._move_to(config)
        if _read(aside / "of") != self._move_of():
            self._put_aside(aside)
        if _read(aside / "to") != target:
            for done in Path(self.folder).glob(f"shard-*/{MOVED}"):
                done.unlink()
            (aside / "to").write_text(target, "utf-8")
        for old in range(config.shards, len(self.states)):
            forget(shard_folder(self.folder, old))

    def _put_aside(self, aside: Path) -> None:
        unfinished = aside.with_name(f".{MOVED}")
        shutil.rmtree(unfinished, ignore_errors=True)
        for old in range(len(self.states)):
            settle(shard_folder(self.folder, old))
            parts = [self._snapshot(old), LIVE if self.contents == "moved_newest" else ""]
            for part in filter(None, parts):
                _link(shard_folder(self.folder, old) / part, shard_folder(unfinished, old) / part)
        (unfinished / "of").write_text(self._move_of(), "utf-8")
        shutil.rmtree(aside, ignore_errors=True)
        unfinished.rename(aside)

    def _move_of(self) -> str:
        return json.dumps([self.contents, *(self._snapshot(old) for old in range(len(self.states)))])

    def _move_to(self, config: ReplayConfig) -> str:
        return json.dumps([self._move_of(), config.shards, config.capacity, config.capacity_bytes])

    def _moves(self, own: Path, config: ReplayConfig) -> bool:
        return self.is_moved and _read(own / MOVED) != self._move_to(config)

    def _snapshot(self, old: int) -> str:
        meta = self.meta(old)
        return f"{SNAPSHOTS}/{meta['snapshot']}" if meta else ""

    def _move(self, shard: DurableShard, index: int, config: ReplayConfig) -> Restored:
        olds = range(len(self.states))
        folders = [shard_folder(Path(self.folder) / MOVED, old) for old in olds]
        metas = [self.meta(old) for old in olds]
        tails = self.contents == "moved_newest"
        return rehash(shard, folders, metas, lambda actor: actor % config.shards == index, tails)

    def _restore(self, shard: ReplayShard, own: Path, index: int, generation: int, journals: bool) -> Restored | None:
        meta, logged = self.meta(index), journals and has_log(own)
        if generation or self.is_moved:
            return restore_live(shard, own) if logged else None
        if self.contents == "exact" and meta:
            return restore_exactly(shard, own, meta)
        if self.contents == "newest" and (meta or logged):
            return restore_newest(shard, own, meta)
        if self.folder:
            forget(own)
        return None


NOTHING_KEPT = Replay()


def shard_folder(folder: Path | str, index: int) -> Path:
    """Return where a shard's log and snapshots lie."""
    return Path(folder) / f"shard-{index}"


def replay_folder(config: ReplayConfig, run: Path) -> Path:
    """Return where the shards' folders of a run lie."""
    return (Path(config.folder) / run.name if config.folder else run / "replay").resolve()


def shard_states(states: Mapping[str, State]) -> dict[str, State]:
    """Return of a checkpoint's states those of shards."""
    return {name: state for name, state in states.items() if name.startswith(f"{SHARD}[")}


def told(name: str, restored: Restored, seconds: float) -> list[News]:
    """Put what came back into events."""
    facts = {"role": name, "records": restored.records, "rows": restored.rows, "torn_bytes": restored.torn_bytes}
    damage = [News("replay_damaged", {"role": name, "said": note}) for note in restored.notes]
    return [News("replay_restored", {**facts, "seconds": round(seconds, 3)}), *damage]


def forget(own: Path) -> None:
    """Remove a shard's live log: its rows are nobody's any more. Snapshots stay."""
    (own / MOVED).unlink(missing_ok=True)
    shutil.rmtree(own / LIVE, ignore_errors=True)


def _take_nothing_yet(shard: ReplayShard) -> None:
    """Let writers wait until the learner, who has the account, says how much this shard may take."""
    nothing = SampleRequest(counts=[], keys=np.empty(0, np.int64), priorities=np.empty(0), insert_limit=0)
    shard.sample(nothing)


def _link(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if source.exists():
        shutil.copytree(source, target, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> None:
    """Give a file another name, or copy it where that cannot be; a link into a live log may grow, at its end."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
