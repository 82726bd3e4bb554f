"""An environment of your own is any Gymnasium environment: here a corridor with a door at one of its ends."""

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)  # where I stand, where the door is
    action_space = gymnasium.spaces.Discrete(2)  # left, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.door = 4, int(self.np_random.choice([0, 8]))
        return np.array([self.at, self.door], np.float32) / 8, {}

    def step(self, action):
        self.at = min(max(self.at + (1 if action else -1), 0), 8)
        return np.array([self.at, self.door], np.float32) / 8, -0.1, self.at == self.door, False, {}
