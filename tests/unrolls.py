"""Small unrolls for tests of what lies between actors and a learner."""

import numpy as np

from starling.types import Unroll


def unroll_of(actor: int = 0, sequence: int = 0, version: int = 1, generation: int = 0, steps: int = 2) -> Unroll:
    """Return an unroll of one copy, whose first row was acted by `version` and the others by the one after it."""
    columns = {
        "obs": np.zeros((steps, 1, 2), np.float32),
        "action": np.zeros((steps, 1), np.int64),
        "reward": np.ones((steps, 1), np.float32),
        "terminated": np.zeros((steps, 1), bool),
        "truncated": np.zeros((steps, 1), bool),
        "acted": np.ones((steps, 1), bool),
        "version": np.minimum(np.arange(steps), 1)[:, None] + version,
        "age": np.arange(steps, dtype=np.int32)[:, None],
    }
    return Unroll(
        actor=actor,
        generation=generation,
        sequence=sequence,
        columns=columns,
        final_at=np.empty(0, np.int64),
        final_obs=np.empty((0, 2), np.float32),
        next_obs=np.zeros((1, 2), np.float32),
    )
