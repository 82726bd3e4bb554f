"""A rollout without networks: groups of copies take turns, one steps while the others' questions are under way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.copies import Copies, seed_numbers
from actors.writing import Part, Writer
from starling.metrics import Meter
from starling.networks.description import state_specs
from starling.questions import ActionSource, Answer, Question
from starling.types import Act, Acting, Array, Place, Unroll

NOBODY = np.empty(0, np.int64)


@dataclass(slots=True)
class Group:
    """Copies that step together, and how far they are."""

    copies: Copies
    part: Part
    none: Array  # no observation
    obs: Array = field(init=False)
    number: int = 0  # of the newest question
    starting: NDArray[np.int64] = field(default_factory=lambda: NOBODY)  # as asked
    answer: Answer | None = None
    asked: bool = False  # and not answered
    cut: NDArray[np.int64] = field(default_factory=lambda: NOBODY)  # truncated in the last row, and not judged yet
    cut_obs: Array = field(init=False)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin new episodes; what was asked is of no interest any more."""
        self.obs = self.copies.reset(seeds)
        self.answer, self.asked = None, False
        self.cut, self.cut_obs = NOBODY, self.none


class CentralRollout:
    """Plays copies as their inference role says, and goes on whenever answers have come.

    All groups write into the same unroll, side by side. `ahead`: the question for an unroll's first row is asked before
    the one before is finished, so nobody waits in between; otherwise it is asked when that one has been sent, and its
    answer must be of parameters newer than the oldest ones that acted there. Where the role has lost what the networks
    remembered, the streams end: every copy begins anew, and the rows of the unfinished unroll are dropped.
    """

    def __init__(
        self,
        groups: Sequence[Copies],
        acting: Acting,
        inference: ActionSource,
        place: Place,
        seed: np.random.SeedSequence,
        generation: int = 0,
        ahead: bool = True,
    ) -> None:
        first = groups[0]
        assert place.num_copies == sum(copies.num_copies for copies in groups), "each copy is in one group"
        self.place = place
        self._inference = inference
        self._ahead = ahead
        self._remembers = bool(state_specs(acting.acting(first.spec)))
        self._writer = Writer(acting, first.spec, first.config, place, len(groups))
        none = first.spec.obs.zeros(0)
        self._groups = [Group(copies, part, none) for copies, part in zip(groups, self._writer.parts, strict=True)]
        self._judges = False
        self.restart(seed, generation)

    def restart(self, seed: np.random.SeedSequence, generation: int) -> None:
        """Reset every copy and begin new streams; a new generation, since the old ones have no next row."""
        self._seed = seed
        self._generation = generation
        self._lives = 0
        self._newer_than = 0
        self.under_way = False
        self._reset(seed)
        self._writer.restart(generation)

    def close(self) -> None:
        """Let go of the environments."""
        for group in self._groups:
            group.copies.close()

    def play(self, length: int, meter: Meter) -> Unroll | str:
        """Go on with an unroll of `length` steps until it is whole, or until somebody must answer first."""
        if not self.under_way:
            self._begin(length, meter)
        while True:
            self._hear(length, meter)
            able = [group for group in self._groups if group.answer is not None and not group.part.done]
            for group in able:
                self._step(group, meter)
            if all(group.part.done and not group.cut.size for group in self._groups):
                return self._finish(meter)
            if not able:
                meter.enter("waiting_actions")
                return self._inference.waits()

    def _begin(self, length: int, meter: Meter) -> None:
        self._writer.begin(length)
        self.under_way = True
        for group in self._groups:
            if not group.asked and group.answer is None:
                self._ask(group, meter, self._newer_than)

    def _ask(self, group: Group, meter: Meter, newer_than: int = 0) -> None:
        meter.enter("asking")
        group.number += 1
        group.asked = True
        group.starting = group.part.starting() if self._remembers else NOBODY
        self._inference.ask(
            Question(
                actor=self.place.actor,
                generation=self._generation,
                group=self._groups.index(group),
                number=group.number,
                obs=group.obs,
                fresh=group.part.fresh(),
                starting=group.starting,
                cut=group.cut,
                cut_obs=group.cut_obs,
                mask=group.copies.mask,
                newer_than=newer_than,
            )
        )

    def _hear(self, length: int, meter: Meter) -> None:
        meter.enter("asking")
        for answer in self._inference.answers():
            group = self._groups[answer.group]
            if not group.asked or answer.number != group.number:
                continue  # of a life before
            if answer.lost:
                meter.count("streams_lost", self.place.num_copies)
                self._begin_anew(length, meter)
                return
            group.asked, group.answer = False, answer
            if group.cut.size:
                group.part.judge_last(group.cut, answer.cut)
                group.cut, group.cut_obs = NOBODY, group.none

    def _step(self, group: Group, meter: Meter) -> None:
        answer, group.answer = group.answer, None
        assert answer is not None, "only who was answered steps"
        meter.enter("stepping")
        part = group.part
        part.columns["version"][part.t] = answer.version
        part.act(group.obs, Act(answer.action, answer.extras, answer.taken), answer.value)
        step = group.copies.step(answer.action)
        part.step(step)
        if answer.starts:
            part.start(group.starting, answer.starts)
        group.obs = step.obs
        self._judges = answer.value is not None
        if self._judges and step.ended.size:
            truncated = ~step.terminated[step.ended]
            group.cut, group.cut_obs = step.ended[truncated], step.final_obs[truncated]
        if self._ahead or not part.done:
            self._ask(group, meter)

    def _finish(self, meter: Meter) -> Unroll:
        meter.enter("priorities")
        self.under_way = False
        unroll = self._writer.finish([group.obs for group in self._groups], self._judges)
        oldest = int(unroll.columns["version"].min())
        self._newer_than = 0 if self._ahead else oldest
        meter.gauge("version", oldest)
        return unroll

    def _begin_anew(self, length: int, meter: Meter) -> None:
        self._lives += 1
        self._reset(np.random.SeedSequence(self._seed.entropy, spawn_key=(*self._seed.spawn_key, self._lives)))
        self._writer.cut()
        self._begin(length, meter)

    def _reset(self, seed: np.random.SeedSequence) -> None:
        words = seed_numbers(seed, self.place.num_copies)
        for group in self._groups:
            group.reset(words[group.part.span])
