"""A rollout: copies of an environment acted on step by step, and written down as unrolls."""

import numpy as np
from numpy.typing import NDArray

from actors.copies import Copies, Step, require_finite, seed_numbers
from actors.priorities import Beliefs
from starling.metrics import Meter
from starling.networks.forward import Forward, Recall
from starling.params import Params
from starling.spec import ArraySpec
from starling.types import Acting, Array, Columns, Place, Unroll

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


class Rollout:
    """Plays copies without a pause: each unroll begins where the last one stopped.

    An unroll's arrays are its own; nothing that happens afterwards changes one in flight. Seeded alike, two rollouts
    with the same parameters play the same steps, however those are cut into unrolls.
    """

    def __init__(
        self,
        copies: Copies,
        acting: Acting,
        forward: Forward,
        place: Place,
        seed: np.random.SeedSequence,
        generation: int = 0,
    ) -> None:
        assert place.num_copies == copies.num_copies
        self.place = place
        self._copies = copies
        self._acting = acting
        self._forward = forward
        self._window = acting.window
        self._explore = acting.explore(place)
        spec = copies.spec
        self._networks = acting.acting(spec)
        self._extras = dict(acting.columns(spec))
        self._columns = {
            "obs": spec.obs,
            "action": spec.action,
            **{name: ArraySpec((), dtype) for name, dtype in SCALARS.items()},
            **self._extras,
        }
        self.restart(seed, generation)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Reset every copy and begin new streams; a new generation, since the old ones have no next row."""
        num_copies = self._copies.num_copies
        words = seed_numbers(seed, num_copies + 4)
        self._obs = self._copies.reset(words[:num_copies])
        self._rng = np.random.default_rng(words[num_copies:])
        self._generation = generation
        self._sequence = 0
        self._age = np.zeros(num_copies, np.int32)
        self._returns = np.zeros(num_copies)
        self._recall = Recall(self._forward, self._networks, num_copies)
        self._beliefs = Beliefs(self._window, num_copies) if self._window else None

    def load(self, params: Params) -> None:
        """Act by these parameters from the next step on."""
        self._forward.load(params)

    def close(self) -> None:
        """Let go of the environment."""
        self._copies.close()

    def collect(self, length: int, version: int, meter: Meter) -> Unroll:
        """Play `length` steps by the parameters that were loaded last, whose version this is."""
        shape = (length, self._copies.num_copies)
        columns: Columns = {name: np.empty(shape + spec.shape, spec.dtype) for name, spec in self._columns.items()}
        columns["version"].fill(version)
        taken, value = np.zeros((2, *shape), np.float32)
        endings, starts = Endings(), Starts()
        judges = True
        for t in range(length):
            meter.enter("acting")
            before = self._recall.state
            outputs = self._recall(self._obs)
            if (mask := self._copies.mask) is not None:
                outputs = {**outputs, "mask": mask}
            act = self._acting.act(outputs, self._explore, self._rng)
            columns["obs"][t] = self._obs  # before the step: the vector may write its next one into the same buffer
            columns["action"][t] = act.action
            columns["age"][t] = self._age
            for name in self._extras:
                columns[name][t] = act.extras[name]
            if judges := act.taken is not None and self._beliefs is not None:
                taken[t] = act.taken
                value[t] = self._acting.value(outputs)
            meter.enter("stepping")
            self._note(t, self._copies.step(act.action), columns, endings)
            if before:
                self._remember(t, before, columns, starts)
        meter.enter("priorities")
        final_at, final_obs = endings.at(), endings.final_obs(self._copies.spec.obs)
        config = self._copies.config
        require_finite(config.id, observation=columns["obs"], reward=columns["reward"], last_observation=final_obs)
        columns["reward"] = config.learned_reward(columns["reward"])
        priorities = self._priorities(columns, taken, value, endings) if judges else None
        self._sequence += 1
        return Unroll(
            actor=self.place.actor,
            generation=self._generation,
            sequence=self._sequence - 1,
            columns=columns,
            final_at=final_at,
            final_obs=final_obs,
            next_obs=None if self._window else self._obs.copy(),
            priorities=priorities,
            episodes=endings.episodes(),
            start_at=starts.at(),
            starts=starts.states(),
        )

    def _note(self, t: int, step: Step, columns: Columns, endings: "Endings") -> None:
        columns["reward"][t] = step.reward
        columns["terminated"][t] = step.terminated
        columns["truncated"][t] = step.truncated
        columns["acted"][t] = step.acted
        self._returns += step.reward
        self._age += step.acted
        self._obs = step.obs
        ended = step.ended
        if ended.size:
            own: tuple[Array, ...] = self._returns[ended], self._age[ended], self._explore[ended]
            figures = {**step.metrics, **dict(zip(OWN_FIGURES, own, strict=True))}
            remembered = {name: state[ended] for name, state in self._recall.state.items()}
            endings.add(t * len(self._age) + ended, step.final_obs, figures, remembered)
            self._returns[ended] = 0.0
            self._age[ended] = 0

    def _remember(self, t: int, before: Columns, columns: Columns, starts: "Starts") -> None:
        """Keep the states that went into row `t` where a window may begin, and forget where an episode begins."""
        if self._window:
            begins = columns["acted"][t] & (columns["age"][t] % self._window.period == 0)
            copies = np.flatnonzero(begins)
            starts.add(t * len(begins) + copies, {name: state[copies] for name, state in before.items()})
        elif t == 0:
            starts.add(np.arange(len(self._age)), before)
        fresh = self._age == 0  # also behind a row that only reset, whose observation was the last episode's
        if fresh.any():
            self._recall.forget(fresh)

    def _priorities(
        self, columns: Columns, taken: Array, value: Array, endings: "Endings"
    ) -> NDArray[np.float32] | None:
        assert self._beliefs is not None
        terminated, truncated = columns["terminated"], columns["truncated"]
        final_at = endings.at()
        after = np.zeros(taken.shape, np.float32)
        cut = ~terminated.reshape(-1)[final_at]  # truncated alone: what would have come is still worth something
        if cut.any():
            state = {name: states[cut] for name, states in endings.states().items()}
            outputs, _ = self._forward.recall(endings.final_obs(self._copies.spec.obs)[cut], state)
            after.reshape(-1)[final_at[cut]] = self._acting.value(outputs)
        rows = {
            **{name: columns[name] for name in ("reward", "terminated", "acted", "age")},
            "ended": terminated | truncated,
            "taken": taken,
            "value": value,
        }
        return self._beliefs.extend(rows, after, self._acting.priorities)


class Endings:
    """The episodes that ended during one unroll, gathered as they end."""

    def __init__(self) -> None:
        self._at: list[NDArray[np.int64]] = []
        self._final_obs: list[Array] = []
        self._figures: list[Columns] = []
        self._states: list[Columns] = []

    def add(self, at: NDArray[np.int64], final_obs: Array, figures: Columns, state: Columns) -> None:
        """Keep the episodes that end with one step: `at` t * E + e, figures of each, and what it remembered."""
        self._at.append(at)
        self._final_obs.append(final_obs)
        self._figures.append(figures)
        self._states.append(state)

    def at(self) -> NDArray[np.int64]:
        """Return `t * E + e` of every end, ascending."""
        return np.concatenate(self._at) if self._at else np.empty(0, np.int64)

    def final_obs(self, spec: ArraySpec) -> Array:
        """Return the observations after the last steps, `[F, ...]`."""
        return np.concatenate(self._final_obs) if self._final_obs else spec.zeros(0)

    def states(self) -> Columns:
        """Return what was remembered after the last steps, `[F, ...]`."""
        return _concatenated(self._states)

    def episodes(self) -> Columns:
        """Return every figure as float32 `[F]`, NaN for the episodes that did not have it."""
        names = dict.fromkeys(name for figures in self._figures for name in figures)  # in the order of appearance
        return {name: self._figure(name) for name in dict.fromkeys(OWN_FIGURES) | names}

    def _figure(self, name: str) -> NDArray[np.float32]:
        parts = [
            f[name] if name in f else np.full(len(at), np.nan) for f, at in zip(self._figures, self._at, strict=True)
        ]
        return np.concatenate([np.empty(0), *parts], dtype=np.float32)


class Starts:
    """The recurrent state that went into those rows at which a window may begin, gathered as they are played."""

    def __init__(self) -> None:
        self._at: list[NDArray[np.int64]] = []
        self._states: list[Columns] = []

    def add(self, at: NDArray[np.int64], states: Columns) -> None:
        """Keep the states of one row's copies: `at` t * E + e."""
        self._at.append(at)
        self._states.append(states)

    def at(self) -> NDArray[np.int64]:
        """Return `t * E + e` of every state, ascending."""
        return np.concatenate([np.empty(0, np.int64), *self._at])

    def states(self) -> Columns:
        """Return the states by network, `[S, ...]`."""
        return _concatenated(self._states)


def _concatenated(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
