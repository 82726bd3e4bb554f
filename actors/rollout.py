"""A rollout: copies of an environment acted on step by step, and written down as unrolls."""

import numpy as np
from numpy.typing import NDArray

from actors.copies import Copies, Step, require_finite, seed_numbers
from actors.priorities import Beliefs
from starling.metrics import Meter
from starling.networks.forward import Forward
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
        with_next_obs: bool = False,
    ) -> None:
        assert place.num_copies == copies.num_copies
        self.place = place
        self._copies = copies
        self._acting = acting
        self._forward = forward
        self._with_next_obs = with_next_obs
        self._explore = acting.explore(place)
        spec = copies.spec
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
        self._beliefs = Beliefs(self._acting.window, num_copies)

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
        endings = Endings()
        judges = True
        for t in range(length):
            meter.enter("acting")
            outputs = self._forward(self._obs)
            act = self._acting.act(outputs, self._explore, self._rng)
            columns["obs"][t] = self._obs  # before the step: the vector may write its next one into the same buffer
            columns["action"][t] = act.action
            columns["age"][t] = self._age
            for name in self._extras:
                columns[name][t] = act.extras[name]
            if judges := act.taken is not None:
                taken[t] = act.taken
                value[t] = self._acting.value(outputs)
            meter.enter("stepping")
            self._note(t, self._copies.step(act.action), columns, endings)
        meter.enter("priorities")
        final_at, final_obs = endings.at(), endings.final_obs(self._copies.spec.obs)
        config = self._copies.config
        require_finite(config.id, observation=columns["obs"], reward=columns["reward"], last_observation=final_obs)
        columns["reward"] = config.learned_reward(columns["reward"])
        priorities = self._priorities(columns, taken, value, final_at, final_obs) if judges else None
        self._sequence += 1
        return Unroll(
            actor=self.place.actor,
            generation=self._generation,
            sequence=self._sequence - 1,
            columns=columns,
            final_at=final_at,
            final_obs=final_obs,
            next_obs=self._obs.copy() if self._with_next_obs else None,
            priorities=priorities,
            episodes=endings.episodes(),
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
            endings.add(t * len(self._age) + ended, step.final_obs, figures)
            self._returns[ended] = 0.0
            self._age[ended] = 0

    def _priorities(
        self, columns: Columns, taken: Array, value: Array, final_at: NDArray[np.int64], final_obs: Array
    ) -> NDArray[np.float32] | None:
        terminated, truncated = columns["terminated"], columns["truncated"]
        after = np.zeros(taken.shape, np.float32)
        cut = ~terminated.reshape(-1)[final_at]  # truncated alone: what would have come is still worth something
        if cut.any():
            after.reshape(-1)[final_at[cut]] = self._acting.value(self._forward(final_obs[cut]))
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

    def add(self, at: NDArray[np.int64], final_obs: Array, figures: Columns) -> None:
        """Keep the episodes that end with one step: `at` t * E + e, and figures of each."""
        self._at.append(at)
        self._final_obs.append(final_obs)
        self._figures.append(figures)

    def at(self) -> NDArray[np.int64]:
        """Return `t * E + e` of every end, ascending."""
        return np.concatenate(self._at) if self._at else np.empty(0, np.int64)

    def final_obs(self, spec: ArraySpec) -> Array:
        """Return the observations after the last steps, `[F, ...]`."""
        return np.concatenate(self._final_obs) if self._final_obs else spec.zeros(0)

    def episodes(self) -> Columns:
        """Return every figure as float32 `[F]`, NaN for the episodes that did not have it."""
        names = dict.fromkeys(name for figures in self._figures for name in figures)  # in the order of appearance
        return {name: self._figure(name) for name in dict.fromkeys(OWN_FIGURES) | names}

    def _figure(self, name: str) -> NDArray[np.float32]:
        parts = [
            f[name] if name in f else np.full(len(at), np.nan) for f, at in zip(self._figures, self._at, strict=True)
        ]
        return np.concatenate([np.empty(0), *parts], dtype=np.float32)
