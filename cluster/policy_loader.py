"""Acts as an exported run does, with numpy alone: `Policy("policy.npz").act(observations)`, an action for each."""

import json
from typing import Any

import numpy as np


class Policy:
    """One file's networks; observations `[E, ...]` as the environment gives them."""

    def __init__(self, path: str) -> None:
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.about = json.loads(str(self.arrays.pop("about")))

    def act(self, obs: Any, mask: Any = None) -> Any:
        """Return the best action that `mask` allows, of the largest output, or the mean stretched to its box."""
        outputs = self.outputs(obs)
        if "low" not in self.arrays:
            said = [outputs[head] for head in self.about["best_of"]]
            if self.about["mask"]:  # what is possible, [E, M]: of several actions at once, those of each in a row
                parts = np.split(np.asarray(mask, bool), np.cumsum([x.shape[1] for x in said])[:-1], 1)
                said = [np.where(part, x, -np.inf) for part, x in zip(parts, said, strict=True)]
            best = np.stack([x.argmax(-1) for x in said], -1)
            return (best if self.about["several"] else best[:, 0]) + self.about["first_action"]
        low, high = self.arrays["low"], self.arrays["high"]
        mean = outputs[self.about["best_of"][0]].reshape(-1, *low.shape)
        with np.errstate(invalid="ignore"):  # infinite bounds, where it is only clipped
            inside = low + (np.clip(mean, -1, 1) + 1) / 2 * (high - low)
        return np.where(np.isfinite(high - low), inside, np.clip(mean, low, high))

    def outputs(self, obs: Any) -> dict[str, Any]:
        """Return what each head says."""
        x = np.asarray(obs) - self.arrays["offset"] if "offset" in self.arrays else np.asarray(obs)
        if sizes := self.about["classes"]:
            x = np.concatenate([np.eye(n)[d] for n, d in zip(sizes, x.reshape(len(x), -1).T, strict=True)], 1)
        x = x.astype(np.float32) / np.float32(255 if self.about["bytes"] else 1)
        return {head: self.run(x, steps) for head, steps in self.about["heads"].items()}

    def run(self, x: Any, steps: list[list[Any]]) -> Any:
        """Do one step after the other."""
        for kind, name, *more in steps:
            if kind == "conv":  # one stride for both axes, no padding
                w = self.arrays[f"{name}.weight"]
                patches = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
                x = np.tensordot(patches[:, :, :: more[0], :: more[0]], w, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
                x = x + self.arrays[f"{name}.bias"][:, None, None]
            elif kind == "linear":
                x = x.reshape(len(x), -1) @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", 0)
            elif kind == "norm":  # clipped in standard deviations
                x = x.reshape(len(x), -1) - self.arrays[f"{name}.mean"]
                x = np.clip(x / self.arrays[f"{name}.deviation"], -more[0], more[0])
            elif kind == "values":
                x = np.repeat(self.arrays[name][None], len(x), 0)
            else:
                x = np.maximum(x, 0) if kind == "relu" else np.tanh(x)
        return x
