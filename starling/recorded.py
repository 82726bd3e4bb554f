"""Recorded steps <-> unrolls: what was played elsewhere or before, as if actors had sent it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starling.errors import DataError
from starling.spec import ArraySpec, Spec
from starling.types import Array, Columns, Unroll

FIRST_ACTOR = 1_000_000  # far above those that play
LANES = 64  # streams that a file is dealt to, so that every shard gets its part
LENGTH = 512  # steps of an unroll
SCALARS = {"terminated": "bool", "truncated": "bool", "acted": "bool", "version": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Steps of one stream after the other, each in the order of time.

    Step i + 1 follows step i unless that one ended its episode or i + 1 `begins`: there the recording was cut.
    """

    columns: Columns  # [N, ...] as in an unroll, but for `acted`: every row is a step
    begins: NDArray[np.bool_]  # [N]
    final_obs: Array  # [F, ...] after each step that ended an episode

    @staticmethod
    def of(columns: Columns, final_obs: Array) -> "Recorded":
        """Return whole episodes, one after the other; the last one may be cut."""
        begins = np.zeros(len(columns["terminated"]), np.bool_)
        first = first_steps(begins, columns["terminated"] | columns["truncated"])
        return Recorded(columns={**columns, "age": steps_since(first)}, begins=begins, final_obs=final_obs)

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Which steps ended their episode, `[N]`."""
        ended: NDArray[np.bool_] = self.columns["terminated"] | self.columns["truncated"]
        return ended

    @property
    def first(self) -> NDArray[np.bool_]:
        """Which steps do not follow the one before them, `[N]`."""
        return first_steps(self.begins, self.ended)


def first_steps(begins: NDArray[np.bool_], ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which steps begin an episode, or what there is of it."""
    first = begins.copy()
    first[1:] |= ended[:-1]
    first[:1] = True
    return first


def steps_since(first: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return how many steps lie between each step and the newest of the `first` ones, `[N]`."""
    index = np.arange(len(first), dtype=np.int32)
    return index - np.maximum.accumulate(np.where(first, index, 0))


def unrolls(recorded: Recorded, length: int = LENGTH) -> Iterator[Unroll]:
    """Yield unrolls of one copy and at most `length` steps, all of no version of ours.

    Whole episodes are dealt to one stream after the other, so that shards share them; a gap in a stream's count says
    that what follows is another episode.
    """
    ended, first = recorded.ended, recorded.first
    finals = np.concatenate([[0], np.cumsum(ended)])
    sequences = [0] * LANES
    lane = 0
    for start, stop in _spans(recorded, length):
        goes_on = stop < len(first) and not first[stop]
        yield _unroll(recorded, slice(start, stop), slice(finals[start], finals[stop]), lane, sequences[lane])
        sequences[lane] += 1 if goes_on or ended[stop - 1] else 2
        lane = lane if goes_on else (lane + 1) % LANES


def recorded_from(unrolls: Iterable[Unroll]) -> Recorded:
    """Return the steps of unrolls in the order of (actor, copy, time), with `actor` and `copy` among the columns."""
    actors: dict[int, list[Unroll]] = {}
    for unroll in unrolls:
        actors.setdefault(unroll.actor, []).append(unroll)
    parts = [
        part
        for _, sent in sorted(actors.items())
        for copy in range(sent[0].columns["acted"].shape[1])
        for part in _stream(sent, copy)
    ]
    if not parts:
        raise DataError("recorded data must hold at least one step, got none")
    return Recorded(
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        begins=np.concatenate([part.begins for part in parts]),
        final_obs=np.concatenate([part.final_obs for part in parts]),
    )


def without_oldest(unroll: Unroll, count: int) -> Unroll:
    """Return an unroll without its first `count` real steps, as a shard has it that has overwritten those."""
    if not count:
        return unroll
    acted = unroll.columns["acted"].copy()
    flat = acted.reshape(-1)
    gone = np.flatnonzero(flat)[:count]
    flat[gone] = False
    kept = ~np.isin(unroll.final_at, gone)
    starts = ~np.isin(unroll.start_at, gone)
    return replace(
        unroll,
        columns={**unroll.columns, "acted": acted},
        final_at=unroll.final_at[kept],
        final_obs=unroll.final_obs[kept],
        priorities=None,
        start_at=unroll.start_at[starts],
        starts={name: array[starts] for name, array in unroll.starts.items()},
    )


class Foreign:
    """Turns unrolls of other runs into recorded ones: each of their actors is a stream far from the run's own.

    Every stream counts from 0 again, so that none goes on where another file's happened to end.
    """

    def __init__(self) -> None:
        self._actors: dict[int, int] = {}
        self._newest: dict[int, tuple[int, int, int]] = {}  # by actor: generation and sequence as it came, and ours

    def __call__(self, unroll: Unroll) -> Unroll:
        """Return the unroll as nobody's: of no version, with no priorities."""
        generation, before, sequence = self._newest.get(unroll.actor, (unroll.generation, unroll.sequence - 1, -1))
        sequence += 1 if (generation, before + 1) == (unroll.generation, unroll.sequence) else 2
        self._newest[unroll.actor] = unroll.generation, unroll.sequence, sequence
        actor = FIRST_ACTOR + self._actors.setdefault(unroll.actor, len(self._actors))
        columns = {**unroll.columns, "version": np.zeros_like(unroll.columns["version"])}
        return replace(unroll, actor=actor, generation=0, sequence=sequence, columns=columns, priorities=None)


def refuse_misfit(unroll: Unroll, columns: Mapping[str, ArraySpec], origin: str) -> None:
    """Refuse an unroll that a shard of these columns could not store; its values may be anything."""
    rows = unroll.columns.get("acted", np.empty(0)).shape
    wanted = {**columns, **{name: ArraySpec((), dtype) for name, dtype in SCALARS.items()}}
    for name, spec in wanted.items():
        column = unroll.columns.get(name)
        got = "nothing" if column is None else f"{column.dtype} {column.shape}"
        if got != f"{spec.dtype} {(*rows, *spec.shape)}" or len(rows) != 2:
            raise DataError(f"{origin}: {name} must be {spec.dtype} of [steps, copies, *{spec.shape}], got {got}")
    age = unroll.columns.get("age")
    if age is None or age.shape != rows or age.dtype.kind != "i":
        raise DataError(
            f"{origin}: age must be whole numbers of [steps, copies], got {'nothing' if age is None else age.dtype}"
        )
    ended = unroll.columns["acted"] & (unroll.columns["terminated"] | unroll.columns["truncated"])
    final, obs = unroll.final_obs, columns["obs"]
    at_ends = _are_rows(unroll.final_at) and np.array_equal(unroll.final_at, np.flatnonzero(ended))
    if not at_ends or final.dtype != obs.dtype or final.shape != (ended.sum(), *obs.shape):
        rule = f"final_obs must be one observation for each of {ended.sum()} ends"
        raise DataError(f"{origin}: {rule}, got {final.dtype} {final.shape}")
    _refuse_other_priorities(unroll, origin)
    _refuse_other_starts(unroll, origin)


def refuse_values(unroll: Unroll, spec: Spec, origin: str) -> None:
    """Refuse steps of another environment's, whose arrays only look alike: networks would fail on them."""
    acted = unroll.columns["acted"]
    action = unroll.columns["action"][acted]
    floats = {
        "obs": unroll.columns["obs"][acted],
        "reward": unroll.columns["reward"][acted],
        "final_obs": unroll.final_obs,
    }
    if spec.num_actions:
        others = action[(action < 0) | (action >= spec.num_actions)]
        if others.size:
            rule = f"action must be one of the {spec.num_actions} of {spec.env}"
            raise DataError(f"{origin}: {rule}, got {others[0]}")
    else:
        floats["action"] = action
    if spec.classes:
        obs = floats.pop("obs"), floats.pop("final_obs")
        if not all(((array >= 0) & (array < np.reshape(spec.classes, spec.obs.shape))).all() for array in obs):
            raise DataError(f"{origin}: obs must be one of the values of {spec.env}, got others")
    for name, array in floats.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{origin}: {name} must be finite, got values that are not")


def _refuse_other_priorities(unroll: Unroll, origin: str) -> None:
    known = unroll.priorities
    if known is None:
        return
    steps, copies = unroll.columns["acted"].shape
    if known.dtype != np.float32 or known.ndim != 2 or len(known) < steps or known.shape[1] != copies:
        rule = f"priorities must be float32 of at least {steps} steps of {copies} copies"
        raise DataError(f"{origin}: {rule}, got {known.dtype} {known.shape}")


def _refuse_other_starts(unroll: Unroll, origin: str) -> None:
    at = unroll.start_at
    if not _are_rows(at) or not np.isin(at, np.flatnonzero(unroll.columns["acted"])).all() or (np.diff(at) <= 0).any():
        raise DataError(f"{origin}: start_at must be real steps, ascending, got {at.dtype} {at.shape}")
    for name, states in unroll.starts.items():
        if states.shape[:1] != at.shape:
            raise DataError(f"{origin}: starts of {name} must be one for each of {len(at)} steps, got {states.shape}")


def _are_rows(at: Array) -> bool:
    return at.dtype.kind == "i" and at.ndim == 1


def _spans(recorded: Recorded, length: int) -> Iterator[tuple[int, int]]:
    """Cut steps into runs of at most `length`: at every gap, else where an episode begins if one does within it."""
    first = recorded.first
    starts, steps = np.flatnonzero(first), len(first)
    gaps = np.append(np.flatnonzero(recorded.begins[1:] & ~recorded.ended[:-1]) + 1, steps)
    start = 0
    while start < steps:
        gap = int(gaps[np.searchsorted(gaps, start, "right")])
        stop = min(start + length, gap)
        newest = int(starts[np.searchsorted(starts, stop, "right") - 1])
        if start < newest and stop < gap:
            stop = newest
        yield start, stop
        start = stop


def _unroll(recorded: Recorded, steps: slice, finals: slice, lane: int, sequence: int) -> Unroll:
    columns = {name: column[steps, None] for name, column in recorded.columns.items()}
    count = steps.stop - steps.start
    nobody = {"version": np.zeros((count, 1), np.int64), "acted": np.ones((count, 1), np.bool_)}
    return Unroll(
        actor=FIRST_ACTOR + lane,
        generation=0,
        sequence=sequence,
        columns={**columns, **nobody},
        final_at=np.flatnonzero(recorded.ended[steps]),
        final_obs=recorded.final_obs[finals],
    )


def _follows(before: Unroll, unroll: Unroll) -> bool:
    return (before.generation, before.sequence + 1) == (unroll.generation, unroll.sequence)


def _stream(sent: Sequence[Unroll], copy: int) -> Iterator[Recorded]:
    """Yield one copy's steps, unroll by unroll; the first one of them all begins, and the first one behind a gap."""
    begins = True
    for before, unroll in zip([None, *sent], sent, strict=False):
        begins |= before is None or not _follows(before, unroll)
        part = _steps_of(unroll, copy)
        part.begins[:1] = begins
        begins &= not len(part.begins)
        yield part


def _steps_of(unroll: Unroll, copy: int) -> Recorded:
    acted = unroll.columns["acted"][:, copy]
    columns = {name: column[acted, copy] for name, column in unroll.columns.items() if name != "acted"}
    steps = int(np.count_nonzero(acted))
    columns |= {"actor": np.full(steps, unroll.actor), "copy": np.full(steps, copy)}
    ours = unroll.final_at % unroll.columns["acted"].shape[1] == copy
    return Recorded(columns=columns, begins=np.zeros(steps, np.bool_), final_obs=unroll.final_obs[ours])
