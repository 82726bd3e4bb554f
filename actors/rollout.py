"""A rollout: copies of an environment acted on step by step by networks of the actor's own."""

import numpy as np

from actors.copies import Copies, seed_numbers
from actors.writing import Writer
from starling.metrics import Meter
from starling.networks.forward import Forward, Recall
from starling.params import Params
from starling.types import Acting, Columns, Place, Unroll


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
        self._judges = acting.window is not None
        self._explore = acting.explore(place)
        self._networks = acting.acting(copies.spec)
        self._writer = Writer(acting, copies.spec, copies.config, place)
        self.restart(seed, generation)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Reset every copy and begin new streams; a new generation, since the old ones have no next row."""
        num_copies = self._copies.num_copies
        words = seed_numbers(seed, num_copies + 4)
        self._obs = self._copies.reset(words[:num_copies])
        self._rng = np.random.default_rng(words[num_copies:])
        self._recall = Recall(self._forward, self._networks, num_copies)
        self._writer.restart(generation)

    def load(self, params: Params) -> None:
        """Act by these parameters from the next step on."""
        self._forward.load(params)

    def close(self) -> None:
        """Let go of the environment."""
        self._copies.close()

    def collect(self, length: int, version: int, meter: Meter) -> Unroll:
        """Play `length` steps by the parameters that were loaded last, whose version this is."""
        self._writer.begin(length)["version"].fill(version)
        (part,) = self._writer.parts
        remembered: list[Columns] = []  # of each step that ended episodes, what had been seen of them
        judges = self._judges
        for _ in range(length):
            meter.enter("acting")
            before = self._recall.state
            outputs = self._recall(self._obs)
            if (mask := self._copies.mask) is not None:
                outputs = {**outputs, "mask": mask}
            act = self._acting.act(outputs, self._explore, self._rng)
            judges = self._judges and act.taken is not None
            starting = part.starting() if before else None
            part.act(self._obs, act, self._acting.value(outputs) if judges else None)
            meter.enter("stepping")
            step = self._copies.step(act.action)
            part.step(step)
            self._obs = step.obs
            if starting is not None:
                part.start(starting, {name: state[starting] for name, state in before.items()})
                if step.ended.size:
                    remembered.append({name: state[step.ended] for name, state in self._recall.state.items()})
                if (fresh := part.fresh()).any():
                    self._recall.forget(fresh)
        meter.enter("priorities")
        if judges:
            self._judge_truncated(remembered)
        return self._writer.finish([self._obs], judges)

    def _judge_truncated(self, remembered: list[Columns]) -> None:
        """Say what those episodes were still worth that were cut off."""
        at, cut, obs = self._writer.truncated()
        if at.size:
            names = remembered[0] if remembered else {}
            state = {name: np.concatenate([part[name] for part in remembered])[cut] for name in names}
            outputs, _ = self._forward.recall(obs, state)
            self._writer.judge(at, self._acting.value(outputs))
