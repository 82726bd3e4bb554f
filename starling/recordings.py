"""Arrays of recorded steps in an environment's own terms: checked, put in ours, and back again."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starling.config import shown
from starling.errors import DataError
from starling.recorded import Recorded, first_steps, steps_since
from starling.spec import ArraySpec, Spec
from starling.types import Array, Columns

NAMES = {
    "obs": ("obs", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminals", "terminations"),
    "truncated": ("truncated", "timeouts", "truncations"),
    "next_obs": ("next_obs", "next_observations"),
    "final_obs": ("final_obs",),
    "episode": ("episode",),
    "age": ("age",),
}
"""Under which names a file may hold what; the first is what we write."""

OURS = ("version", "actor", "copy")  # that an export says, and that is of no use to another run
NEEDED = ("obs", "action", "reward", "terminated")
FLAG, COUNT = ArraySpec((), "bool"), ArraySpec((), "int64")


class Terms(Protocol):
    """Translates between an environment's arrays and ours."""

    def read(self, raw: Any) -> Array:
        """Return observations as ours."""

    def write_obs(self, obs: Array) -> Array:
        """Return observations as the environment's."""

    def read_action(self, action: Array) -> Array:
        """Return actions as ours."""

    def write(self, action: Array) -> Array:
        """Return actions as the environment's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What recorded steps must fit: the environment, and what its algorithm stores."""

    spec: Spec
    terms: Terms
    learned_reward: Callable[[Array], Array]
    extras: Mapping[str, ArraySpec] = field(default_factory=dict)


def read_steps(arrays: Mapping[str, Array], wanted: Wanted, origin: str) -> Recorded:
    """Return the steps of these arrays; refuse what cannot be learned from by `origin`, array and rule.

    An episode that ended without its last observation ends all the same where it terminated: nothing is ever expected
    from there. Where it was truncated that observation is needed.
    """
    given = _Given(_by_name(arrays, wanted, origin), wanted, origin)
    columns = {
        "obs": given.observations("obs", given.steps),
        "action": given.actions(),
        "reward": wanted.learned_reward(given.array("reward", ArraySpec((), "float32"))),
        "terminated": given.array("terminated", FLAG),
        "truncated": given.array("truncated", FLAG),
        **{name: given.array(name, spec) for name, spec in wanted.extras.items()},
    }
    ended = columns["terminated"] | columns["truncated"]
    begins = given.begins(ended)
    columns["age"] = given.ages(first_steps(begins, ended))
    return Recorded(columns=columns, begins=begins, final_obs=given.final_obs(columns, begins))


def write_steps(recorded: Recorded, terms: Terms, reward_scale: float) -> Columns:
    """Return steps as the arrays that `read_steps` takes, with every other column beside them."""
    columns = dict(recorded.columns)
    columns["obs"] = terms.write_obs(columns["obs"])
    columns["action"] = terms.write(columns["action"])
    columns["reward"] = columns["reward"] / np.float32(reward_scale)
    return {**columns, "episode": np.cumsum(recorded.first) - 1, "final_obs": terms.write_obs(recorded.final_obs)}


def unread(arrays: Iterable[str], wanted: Wanted) -> list[str]:
    """Return the names of arrays that mean nothing here."""
    known = {name for names in NAMES.values() for name in names}
    return sorted(set(arrays) - known - set(wanted.extras) - set(OURS))


class _Given:
    """The arrays of one recording, by our names."""

    def __init__(self, arrays: Columns, wanted: Wanted, origin: str) -> None:
        self._arrays = arrays
        self._wanted = wanted
        self._origin = origin
        self.steps = len(arrays["obs"]) if arrays["obs"].ndim else 0
        self.require(self.steps > 0, "obs", "hold at least one step", "none")

    def require(self, ok: bool, name: str, rule: str, got: object) -> None:
        if not ok:
            raise DataError(f"{self._origin}: {name} must {rule}, got {got}")

    def array(self, name: str, spec: ArraySpec, steps: int | None = None) -> Array:
        """Return an array in the dtype that is stored, if it says the same but for a float's last digits."""
        steps = self.steps if steps is None else steps
        array = self._arrays.get(name)
        if array is None:  # only `truncated` may be missing
            return spec.zeros(steps)
        shape = (steps, *spec.shape)
        self.require(array.shape == shape, name, f"be of shape {shape}", array.shape)
        self.require(array.dtype.kind in "biuf", name, "hold numbers", array.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            stored: Array = array.astype(spec.dtype, copy=False)
        if stored.dtype.kind == array.dtype.kind == "f":
            self._require_each(np.isfinite(stored), name, "be finite")
        elif stored.dtype != array.dtype:
            self._require_each(stored == array, name, f"fit {spec.dtype} without loss")
        return stored

    def observations(self, name: str, steps: int) -> Array:
        spec = self._wanted.spec
        obs = self._wanted.terms.read(self.array(name, spec.obs, steps))
        if spec.classes:
            below = obs < np.reshape(spec.classes, spec.obs.shape)
            self._require_each((obs >= 0) & below, name, f"be one of the values of {spec.env}")
        return obs

    def actions(self) -> Array:
        spec = self._wanted.spec
        raw = self.array("action", spec.action)
        action = self._wanted.terms.read_action(raw)
        if spec.num_actions:
            fine = (action >= 0) & (action < spec.num_actions)
            self._require_each(fine, "action", f"be one of the {spec.num_actions} of {spec.env}")
        else:
            low, high = (np.reshape(bound, spec.action.shape).astype(np.float32) for bound in (spec.low, spec.high))
            close = np.float32(1e-5)  # what was computed from such bounds may lie beside them
            fine = (raw >= low - close * np.maximum(1.0, abs(low))) & (raw <= high + close * np.maximum(1.0, abs(high)))
            self._require_each(fine, "action", f"lie between {shown(list(spec.low))} and {shown(list(spec.high))}")
        return action

    def begins(self, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return where the recording was cut: another episode begins, and the one before did not end."""
        begins = np.zeros(self.steps, np.bool_)
        begins[0] = True
        if "episode" in self._arrays:
            episode = self.array("episode", COUNT)
            begins[1:] = (episode[1:] != episode[:-1]) & ~ended[:-1]
        return begins

    def ages(self, first: NDArray[np.bool_]) -> Array:
        """Return the steps of the episode before each; those of a recording that began in its middle it must say."""
        since = steps_since(first)
        if "age" not in self._arrays:
            return since
        age = self.array("age", ArraySpec((), "int32"))
        right = np.where(first, age >= 0, age == age[np.arange(self.steps) - since] + since)
        self._require_each(right, "age", "count the steps of each episode")
        return age

    def final_obs(self, columns: Columns, begins: NDArray[np.bool_]) -> Array:
        ended = columns["terminated"] | columns["truncated"]
        if "next_obs" in self._arrays:
            following = self.observations("next_obs", self.steps)
            goes_on = ~(ended[:-1] | begins[1:])
            same = (following[:-1] == columns["obs"][1:]).reshape(self.steps - 1, -1).all(1) | ~goes_on
            self._require_each(same, "next_obs", "be the obs of the next step (in the order of time)")
            return following[ended]
        ends = int(np.count_nonzero(ended))
        if "final_obs" in self._arrays:
            return self.observations("final_obs", ends)
        cut = np.flatnonzero(columns["truncated"] & ~columns["terminated"])
        at = f"none after step {cut[0]}" if len(cut) else ""
        self.require(not len(cut), "next_obs", "be there, as truncated steps need the observation after them", at)
        return self._wanted.spec.obs.zeros(ends)

    def _require_each(self, fine: Array, name: str, rule: str) -> None:
        if not fine.all():
            at = np.argwhere(~fine)[0]
            value = self._arrays[name][tuple(at)]
            raise DataError(f"{self._origin}: {name} must {rule}, got {shown(value.tolist())} at step {at[0]}")


def _by_name(arrays: Mapping[str, Array], wanted: Wanted, origin: str) -> Columns:
    found = {}
    for ours, names in {**NAMES, **{name: (name,) for name in wanted.extras}}.items():
        there = [name for name in names if name in arrays]
        if len(there) > 1:
            raise DataError(f"{origin}: {ours} must be given once, got {' and '.join(there)}")
        if there:
            found[ours] = arrays[there[0]]
        elif ours in (*NEEDED, *wanted.extras):
            raise DataError(
                f"{origin}: {' or '.join(names)} must be there, got {', '.join(sorted(arrays)) or 'nothing'}"
            )
    return found
