"""The writing of unrolls: what groups of an actor's copies did, side by side in the same columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.copies import EnvConfig, Step, require_finite
from actors.priorities import Beliefs
from starling.spec import ArraySpec, Spec
from starling.types import Act, Acting, Array, Columns, Place, Unroll
from starling.windows import Window

SCALARS = {
    "reward": "float32",
    "terminated": "bool",
    "truncated": "bool",
    "acted": "bool",
    "version": "int64",
    "age": "int32",
}

OWN_FIGURES = ("return", "length", "explore")
"""Of every episode: what it earned by the environment's own reward, its steps, and how much its copy explored"""


class Sheet(NamedTuple):
    """An unroll that is being written; the first three have a value per step, and columns what was done."""

    taken: NDArray[np.float32]  # [T, E] value of the action taken, of who judges
    value: NDArray[np.float32]  # [T, E] value of what was seen
    after: NDArray[np.float32]  # [T, E] value of the last observation where an episode was truncated
    columns: Columns
    endings: "Endings"
    starts: "Starts"


class Part:
    """One group of copies in the unroll that is being written: each row first what was done, then what came of it.

    Groups advance by themselves: one may be rows ahead of another.
    """

    def __init__(
        self, first: int, num_copies: int, window: Window | None, extras: Sequence[str], explore: Array
    ) -> None:
        self.span = slice(first, first + num_copies)  # of the actor's copies
        self.t = self.length = 0  # the row that is written next, and how many there are
        self.age = np.zeros(num_copies, np.int32)
        self.columns: Columns = {}
        self._returns = np.zeros(num_copies)
        self._window = window
        self._extras = extras
        self._explore = explore

    def begin(self, sheet: "Sheet") -> None:
        """Write into this unroll, from its first row on."""
        self.t = 0
        self.length = len(sheet.taken)
        self.columns = {name: column[:, self.span] for name, column in sheet.columns.items()}
        self._taken, self._value, self._after = (j[:, self.span] for j in (sheet.taken, sheet.value, sheet.after))
        self._endings, self._starts = sheet.endings, sheet.starts
        self._num_copies = sheet.taken.shape[1]

    def act(self, obs: Array, act: Act, value: Array | None) -> None:
        """Write what the copies saw and do next, and what they expected of it if they judge."""
        t, columns = self.t, self.columns
        columns["obs"][t] = obs  # before the step: the vector may write its next one into the same buffer
        columns["action"][t] = act.action
        columns["age"][t] = self.age
        for name in self._extras:
            columns[name][t] = act.extras[name]
        if value is not None:
            self._taken[t] = act.taken
            self._value[t] = value

    def step(self, step: Step) -> None:
        """Write what came of it, and go on to the next row."""
        t, columns = self.t, self.columns
        columns["reward"][t] = step.reward
        columns["terminated"][t] = step.terminated
        columns["truncated"][t] = step.truncated
        columns["acted"][t] = step.acted
        self._returns += step.reward
        self.age += step.acted
        ended = step.ended
        if ended.size:
            own: tuple[Array, ...] = self._returns[ended], self.age[ended], self._explore[ended]
            figures = {**step.metrics, **dict(zip(OWN_FIGURES, own, strict=True))}
            self._endings.add(self._at(t, ended), step.final_obs, figures)
            self._returns[ended] = 0.0
            self.age[ended] = 0
        self.t = t + 1

    @property
    def done(self) -> bool:
        """Whether every row is written: what comes next is the next unroll's first."""
        return self.t == self.length

    def starting(self) -> NDArray[np.int64]:
        """Return the copies whose recurrent state an unroll keeps if they take a step in the next row."""
        if self._window:
            return np.flatnonzero(self.age % self._window.period == 0)
        return np.arange(len(self.age) if self.t == 0 or self.done else 0)

    def start(self, copies: NDArray[np.int64], states: Columns) -> None:
        """Keep the states that went into the last row in these copies, where they took a step."""
        t = self.t - 1
        if self._window:
            real = self.columns["acted"][t, copies]
            copies, states = copies[real], {name: state[real] for name, state in states.items()}
        self._starts.add(self._at(t, copies), states)

    def fresh(self) -> NDArray[np.bool_]:
        """Return the copies whose next row begins an episode, or is only a reset."""
        fresh: NDArray[np.bool_] = self.age == 0
        return fresh

    def judge_last(self, copies: NDArray[np.int64], value: Array) -> None:
        """Write what the observations after the last row are worth, where an episode was truncated there."""
        self._after[self.t - 1, copies] = value

    def forget(self) -> None:
        """Begin new episodes in every copy; what was written of an unroll is not to be kept."""
        self.age[:] = 0
        self._returns[:] = 0.0

    def _at(self, t: int, copies: NDArray[np.int64]) -> NDArray[np.int64]:
        at: NDArray[np.int64] = copies + t * self._num_copies + self.span.start
        return at


class Writer:
    """Writes one unroll after another; between `begin` and `finish` its parts fill their columns.

    An unroll's arrays are its own: nothing that happens afterwards changes one in flight. Its steps are in order of row
    and copy, whichever group was quicker.
    """

    def __init__(self, acting: Acting, spec: Spec, config: EnvConfig, place: Place, groups: int = 1) -> None:
        self._acting = acting
        self._spec = spec
        self._config = config
        self._place = place
        self._window = acting.window
        extras = dict(acting.columns(spec))
        self._specs = {
            "obs": spec.obs,
            "action": spec.action,
            **{name: ArraySpec((), dtype) for name, dtype in SCALARS.items()},
            **extras,
        }
        explore = acting.explore(place)
        size = place.num_copies // groups
        self.parts = [
            Part(first, size, self._window, list(extras), explore[first : first + size])
            for first in range(0, place.num_copies, size)
        ]
        self.restart(0)

    def restart(self, generation: int) -> None:
        """Begin new streams in a new generation, since the old ones have no next row."""
        self._generation = generation
        self._sequence = 0
        self._begin_streams()

    def cut(self) -> None:
        """Begin new streams in this generation: the number that is left out tells whoever knew the old ones."""
        self._sequence += 1
        self._begin_streams()

    def begin(self, length: int) -> Columns:
        """Begin an unroll of `length` rows, and return its columns."""
        shape = (length, self._place.num_copies)
        columns = {name: np.empty(shape + spec.shape, spec.dtype) for name, spec in self._specs.items()}
        taken, value, after = np.zeros((3, *shape), np.float32)
        self._sheet = Sheet(taken, value, after, columns, Endings(), Starts())
        for part in self.parts:
            part.begin(self._sheet)
        return columns

    def truncated(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
        """Return where episodes ended that are still worth something, which of all ends those are, and their ends."""
        at, final_obs = self._sheet.endings.joined(self._spec.obs)
        cut = ~self._sheet.columns["terminated"].reshape(-1)[at]
        return at[cut], cut, final_obs[cut]

    def judge(self, at: NDArray[np.int64], value: Array) -> None:
        """Write what the observations after these steps are worth."""
        self._sheet.after.reshape(-1)[at] = value

    def finish(self, next_obs: Sequence[Array], judges: bool) -> Unroll:
        """Return the unroll, when every part has written every row; with priorities if `judges`."""
        columns, endings = self._sheet.columns, self._sheet.endings
        final_at, final_obs = endings.joined(self._spec.obs)
        config = self._config
        require_finite(config.id, observation=columns["obs"], reward=columns["reward"], last_observation=final_obs)
        columns["reward"] = config.learned_reward(columns["reward"])
        start_at, starts = self._sheet.starts.joined()
        self._sequence += 1
        return Unroll(
            actor=self._place.actor,
            generation=self._generation,
            sequence=self._sequence - 1,
            columns=columns,
            final_at=final_at,
            final_obs=final_obs,
            next_obs=None if self._window else np.concatenate(next_obs),
            priorities=self._priorities() if judges else None,
            episodes=endings.episodes(),
            start_at=start_at,
            starts=starts,
        )

    def _begin_streams(self) -> None:
        self._beliefs = Beliefs(self._window, self._place.num_copies) if self._window else None
        for part in self.parts:
            part.forget()

    def _priorities(self) -> NDArray[np.float32] | None:
        assert self._beliefs is not None
        columns = self._sheet.columns
        rows = {
            **{name: columns[name] for name in ("reward", "terminated", "acted", "age")},
            "ended": columns["terminated"] | columns["truncated"],
            "taken": self._sheet.taken,
            "value": self._sheet.value,
        }
        return self._beliefs.extend(rows, self._sheet.after, self._acting.priorities)


class Endings:
    """The episodes that ended during one unroll, gathered as they end."""

    def __init__(self) -> None:
        self._ended: list[tuple[NDArray[np.int64], Array, Columns]] = []
        self._joined: tuple[NDArray[np.int64], Array] | None = None

    def add(self, at: NDArray[np.int64], final_obs: Array, figures: Columns) -> None:
        """Keep the episodes that end with one step of a group: `at` t * E + e, and figures of each."""
        self._ended.append((at, final_obs, figures))
        self._joined = None

    def joined(self, spec: ArraySpec) -> tuple[NDArray[np.int64], Array]:
        """Return `t * E + e` of every end, ascending, and the observations after the last steps, `[F, ...]`."""
        if self._joined is None:
            self._ended.sort(key=_first)  # groups do not take turns
            at, final_obs = [at for at, _, _ in self._ended], [final for _, final, _ in self._ended]
            none = np.empty(0, np.int64), spec.zeros(0)
            self._joined = (np.concatenate(at), np.concatenate(final_obs)) if at else none
        return self._joined

    def episodes(self) -> Columns:
        """Return every figure as float32 `[F]`, NaN for the episodes that did not have it."""
        names = dict.fromkeys(name for _, _, figures in self._ended for name in figures)  # in the order of appearance
        return {name: self._figure(name) for name in dict.fromkeys(OWN_FIGURES) | names}

    def _figure(self, name: str) -> NDArray[np.float32]:
        parts = [f[name] if name in f else np.full(len(at), np.nan) for at, _, f in self._ended]
        return np.concatenate([np.empty(0), *parts], dtype=np.float32)


class Starts:
    """The recurrent state that went into those rows at which a window may begin, gathered as they are played."""

    def __init__(self) -> None:
        self._started: list[tuple[NDArray[np.int64], Columns]] = []

    def add(self, at: NDArray[np.int64], states: Columns) -> None:
        """Keep the states of copies in one row: `at` t * E + e."""
        self._started.append((at, states))

    def joined(self) -> tuple[NDArray[np.int64], Columns]:
        """Return `t * E + e` of every state, ascending, and the states by network, `[S, ...]`."""
        if not self._started:
            return np.empty(0, np.int64), {}
        self._started.sort(key=_first)
        parts = [states for _, states in self._started]
        at = np.concatenate([at for at, _ in self._started])
        return at, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _first(entry: Sequence[Any]) -> int:
    at = entry[0]
    return int(at[0]) if at.size else -1
