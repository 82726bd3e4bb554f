"""The 4x3 grid of Russell and Norvig: small enough to know the right answer, and to watch it being learned."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from starling.errors import check

ROWS, COLUMNS = 3, 4
NUM_CELLS = ROWS * COLUMNS
WALL, START, GOAL, PIT = 5, 8, 3, 7
"""Cells are numbered by rows from the upper left"""
EXITS = {GOAL: 1.0, PIT: -1.0}
FREE = [cell for cell in range(NUM_CELLS) if cell != WALL and cell not in EXITS]
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: clockwise, so that +-1 is at right angles
ARROWS = "^>v<"


class GridWorld(gymnasium.Env[np.int64, np.int64]):
    """Walk to the exit worth +1 and around the one worth -1; each step costs a little.

    With probability `slip` a move goes off at a right angle; a move into a wall stays where it is. After `max_steps`
    the episode is truncated. `random_start` begins in any free cell rather than in the lower left one.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(
        self,
        slip: float = 0.0,
        step_reward: float = -0.04,
        max_steps: int = 100,
        random_start: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check(0.0 <= slip <= 1.0, f"gridworld.slip must be in [0, 1], got {slip}")
        check(max_steps >= 1, f"gridworld.max_steps must be >= 1, got {max_steps}")
        self.observation_space = Discrete(NUM_CELLS)
        self.action_space = Discrete(len(MOVES))
        self.render_mode = render_mode
        self._slip = slip
        self._step_reward = step_reward
        self._max_steps = max_steps
        self._random_start = random_start
        self._cell = START
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Begin a new walk."""
        super().reset(seed=seed)
        self._cell = int(self.np_random.choice(FREE)) if self._random_start else START
        self._steps = 0
        return np.int64(self._cell), {}

    def step(self, action: np.int64 | int) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Move, or slip."""
        if self.np_random.random() < self._slip:
            action = (int(action) + (1 if self.np_random.random() < 0.5 else -1)) % len(MOVES)
        self._cell = neighbour(self._cell, int(action))
        self._steps += 1
        terminated = self._cell in EXITS
        reward = EXITS.get(self._cell, 0.0) + self._step_reward
        truncated = self._steps >= self._max_steps and not terminated
        return np.int64(self._cell), reward, terminated, truncated, {}

    def render(self) -> Any:
        """Return the grid as text, `@` where the walker stands."""
        return draw({self._cell: "@"}) if self.render_mode == "ansi" else None


def neighbour(cell: int, move: int) -> int:
    """Return the cell that a move leads to; walls leave it where it is."""
    row, column = cell // COLUMNS + MOVES[move][0], cell % COLUMNS + MOVES[move][1]
    inside = 0 <= row < ROWS and 0 <= column < COLUMNS
    there = row * COLUMNS + column
    return there if inside and there != WALL else cell


def draw(marks: dict[int, str]) -> str:
    """Return the grid as text, with marks on some cells."""
    cells = dict.fromkeys(range(NUM_CELLS), ".") | {WALL: "#", GOAL: "+", PIT: "-"} | marks
    lines = ["".join(cells[row * COLUMNS + column] for column in range(COLUMNS)) for row in range(ROWS)]
    return "\n".join(lines) + "\n"


def draw_policy(policy: NDArray[np.int64]) -> str:
    """Return the grid as text, with an arrow for the action of every free cell."""
    return draw({cell: ARROWS[policy[cell]] for cell in FREE})


def optimal(
    slip: float = 0.0, step_reward: float = -0.04, discount: float = 0.99
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return Q* `[12, 4]` by value iteration, and the best action of every cell; walls and exits are worth 0."""
    chances = ((0, 1.0 - slip), (1, slip / 2), (-1, slip / 2))
    q = np.zeros((NUM_CELLS, len(MOVES)))
    while True:
        value = q.max(1)
        better = np.zeros_like(q)
        for cell in FREE:
            for move in range(len(MOVES)):
                for turn, chance in chances:
                    there = neighbour(cell, (move + turn) % len(MOVES))
                    better[cell, move] += chance * (step_reward + EXITS.get(there, 0.0) + discount * value[there])
        if np.abs(better - q).max() < 1e-12:
            return better, better.argmax(1)
        q = better
