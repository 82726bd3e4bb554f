"""Which actions are possible next, as an environment says in its info."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.distributions import mask_parts
from starling.errors import EnvError, check
from starling.spec import Spec

KEY = "action_mask"


def num_entries(spec: Spec) -> int:
    """Return the length of a mask: a number for each action; of several at once, those of each behind one another."""
    check(not spec.low, f"env.action_mask must be none where actions are a box, as those of {spec.env}; got info")
    return spec.num_actions or sum(spec.choices)


class Masks:
    """The masks of all copies, `now`: of the observations that are to be acted on next. One handed out stays as it was.

    A copy whose next step only resets it has all actions: whatever it is asked to do is ignored.
    """

    def __init__(self, spec: Spec, num_copies: int) -> None:
        self.now = np.ones((num_copies, spec.mask), np.bool_)
        self._spec = spec

    def read(self, info: Mapping[str, Any], told: NDArray[np.bool_], resetting: NDArray[np.bool_]) -> None:
        """Take over what a call's info says of the copies `told` of, `[E]`, less those that are `resetting`."""
        given = self._given(info, told & ~resetting)
        fresh = self.now.copy()
        fresh[told] = given[told]
        fresh[resetting] = True
        self._require_some(fresh)
        self.now = fresh

    def _given(self, info: Mapping[str, Any], needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        masks = np.asarray(info.get(KEY, np.zeros(0)))
        there = np.asarray(info.get(f"_{KEY}", np.ones(len(needed), np.bool_)))
        if masks.shape != self.now.shape:
            if not needed.any():
                return self.now
            got = f"one of shape {masks.shape[1:]}" if KEY in info else "none"
            raise EnvError(
                f"environment {self._spec.env} must give info['{KEY}'] with {self.now.shape[1]} entries at every reset "
                f"and step, as env.action_mask says; it gave {got}"
            )
        if not there[needed].all():
            raise EnvError(
                f"environment {self._spec.env} must give info['{KEY}'] at every reset and step, as env.action_mask "
                "says; it left one out"
            )
        return masks.astype(np.bool_)

    def _require_some(self, masks: NDArray[np.bool_]) -> None:
        for part in mask_parts(masks, self._spec):
            if not part.any(-1).all():
                raise EnvError(
                    f"environment {self._spec.env} gave an info['{KEY}'] that forbids every action; where nothing can "
                    "be done its episode must end"
                )
