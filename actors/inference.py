"""The inference role: acts for the copies of actors that have no networks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.gathering import Gathering
from starling.metrics import Clock, Meter
from starling.networks.description import state_specs
from starling.networks.forward import Forward
from starling.questions import Answer, Question, awaited
from starling.spec import Spec
from starling.types import Act, Acting, Array, Columns, ParamSource, Place, Progress


class Memory(NamedTuple):
    """What the networks remember of a group of copies."""

    generation: int
    number: int  # of the last question
    state: Columns  # [n, ...] by network


class Inference:
    """Acts for groups of copies by the newest parameters, and remembers of each group what its networks do.

    A group's questions are acted on in order. What it remembers goes with a new generation of the actor, where `fresh`
    says so, and with this role: a question that needs what is not there is answered by `lost`, and its group must begin
    anew. Those who ask may also have their questions gathered, to be acted on in batches. Called from one thread.
    """

    def __init__(
        self,
        name: str,
        acting: Acting,
        spec: Spec,
        forward: Forward,
        params: ParamSource,
        num_actors: int,
        num_copies: int,
        rng: np.random.Generator,
        clock: Clock,
        gathering: Gathering,
    ) -> None:
        self.name = name
        self._clock = clock
        self._gathering = gathering
        self._acting = acting
        self._forward = forward
        self._params = params
        self._states = state_specs(acting.acting(spec))
        self._judges = acting.window is not None
        self._num_actors = num_actors
        self._num_copies = num_copies
        self._explore: dict[tuple[int, int], NDArray[np.float32]] = {}  # by actor and group
        self._meter = Meter(clock, "waiting_params")
        self._batches = 0
        self.restart(rng)

    def restart(self, rng: np.random.Generator) -> None:
        """Forget everything about the copies, and fetch parameters before acting again."""
        self._rng = rng
        self._memory: dict[tuple[int, int], Memory] = {}
        self.version = 0

    def step(self) -> Progress:
        """Look for newer parameters, and say how much was done since the last step."""
        self.refresh()
        batches, self._batches = self._batches, 0
        if batches:
            return Progress(work={"batches": batches})
        if held := self._gathering.held(self.version):
            lacks = min(question.newer_than for question in held) + 1
            return Progress(waits=f"{self.name} waits for version {lacks} of the parameters")
        return Progress(waits=f"{self.name} waits for {'observations' if self.version else 'the first parameters'}")

    def refresh(self) -> None:
        """Act by the newest parameters from now on."""
        if fresh := self._params.fetch(newer_than=self.version):
            self._meter.enter("loading")
            self.version, params = fresh
            self._forward.load(params)
            self._meter.gauge("version", self.version)
            self._meter.enter("waiting_observations")

    def act(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer these questions, each of another group, by the present parameters, in one pass of the networks."""
        known = [self._knows(question) for question in questions]
        able = [question for question, knows in zip(questions, known, strict=True) if knows]
        answers = iter(self._answers(able) if able else [])
        return [next(answers) if knows else self._sorry(q) for q, knows in zip(questions, known, strict=True)]

    def ask(self, question: Question) -> None:
        """Gather a question, for a batch that is acted on later."""
        self._gathering.add(question, self._clock())

    def due_in_s(self) -> float | None:
        """Return in how many seconds `act_on_due` has something to do, by what is known now; None: nobody knows."""
        self.refresh()
        return self._gathering.wait_s(self.version, self._clock())

    def act_on_due(self) -> list[tuple[Question, Answer]]:
        """Act on the batch that is due."""
        questions = self._gathering.take(self.version)
        return list(zip(questions, self.act(questions), strict=True))

    def holds(self) -> bool:
        """Whether a question waits for newer parameters."""
        return bool(self._gathering.held(self.version))

    def drop(self, actor: int, group: int) -> None:
        """Forget a question that is not going to be acted on."""
        self._gathering.drop(actor, group)

    def stats(self) -> dict[str, Any]:
        """Return work, time shares, and how many copies were acted for at once."""
        return self._meter.snapshot()

    def _answers(self, questions: Sequence[Question]) -> list[Answer]:
        self._meter.enter("acting")
        cut = self._behind_cuts(questions)
        before = {name: _joined([self._before(q)[name] for q in questions]) for name in self._states}
        obs = _joined([question.obs for question in questions])
        outputs, after = self._forward.recall(obs, before)
        if questions[0].mask is not None:
            outputs = {**outputs, "mask": _joined([q.mask for q in questions if q.mask is not None])}
        act = self._acting.act(outputs, _joined([self._strength(q) for q in questions]), self._rng)
        value = self._acting.value(outputs) if self._judges and act.taken is not None else None
        answers, start = [], 0
        for question, worth in zip(questions, cut, strict=True):
            part = slice(start, start + len(question.fresh))
            start = part.stop
            starts = {name: state[part][question.starting] for name, state in before.items()}
            if self._states:
                kept = {name: state[part] for name, state in after.items()}
                self._memory[question.actor, question.group] = Memory(question.generation, question.number, kept)
            answers.append(self._answer(question, act, value, part, worth, starts))
        self._count(start, len(questions))
        self._meter.enter("waiting_observations")
        return answers

    def _answer(
        self, question: Question, act: Act, value: Array | None, part: slice, cut: Array, starts: Columns
    ) -> Answer:
        return Answer(
            group=question.group,
            number=question.number,
            version=self.version,
            action=act.action[part],
            extras={name: extra[part] for name, extra in act.extras.items()},
            taken=None if act.taken is None else act.taken[part],
            value=None if value is None else value[part],
            cut=cut,
            starts=starts,
        )

    def _behind_cuts(self, questions: Sequence[Question]) -> list[Array]:
        """Return for each question what was expected behind episodes that were truncated."""
        counts = [len(question.cut) for question in questions]
        if not any(counts):
            return [np.empty(0, np.float32)] * len(questions)
        asking = [question for question in questions if len(question.cut)]
        state = {
            name: _joined([self._memory[q.actor, q.group].state[name][q.cut] for q in asking]) for name in self._states
        }
        outputs, _ = self._forward.recall(_joined([question.cut_obs for question in asking]), state)
        return np.split(np.asarray(self._acting.value(outputs), np.float32), np.cumsum(counts)[:-1])

    def _knows(self, question: Question) -> bool:
        """Say whether everything that the networks remembered of this group is here."""
        memory = self._memory.get((question.actor, question.group))
        if not self._states or (memory is not None and memory[:2] == (question.generation, question.number - 1)):
            return True
        outlived = memory is not None and question.generation < memory.generation
        return bool(question.fresh.all()) and not len(question.cut) and not outlived

    def _before(self, question: Question) -> Columns:
        """Return what the networks remember as they see the question."""
        fresh = question.fresh
        if fresh.all():
            return {name: spec.zeros(len(fresh)) for name, spec in self._states.items()}
        state = self._memory[question.actor, question.group].state
        if not fresh.any():
            return state
        return {name: np.where(fresh[:, None, None], np.float32(0.0), array) for name, array in state.items()}

    def _sorry(self, question: Question) -> Answer:
        self._meter.count("streams_lost", len(question.fresh))
        nothing = np.empty(0, np.int64)
        return Answer(group=question.group, number=question.number, version=self.version, action=nothing, lost=True)

    def _strength(self, question: Question) -> NDArray[np.float32]:
        """Return how much each copy of a group explores: by its place among all."""
        key = question.actor, question.group
        if key not in self._explore:
            everyone = self._acting.explore(Place(question.actor, self._num_actors, self._num_copies))
            size = len(question.fresh)
            self._explore[key] = everyone[question.group * size : (question.group + 1) * size]
        return self._explore[key]

    def _count(self, copies: int, questions: int) -> None:
        self._batches += 1
        self._meter.count("batches")
        self._meter.count("questions", questions)
        self._meter.count("copies", copies)
        self._meter.observe("batch_copies", copies)


class LocalInference:
    """An ActionSource whose role acts when its answers are asked for; each actor has one of its own.

    No clock decides anything: all groups that have asked are acted for together.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._asked: dict[int, Question] = {}  # by group

    def ask(self, question: Question) -> None:
        """Keep a question until its answer is asked for."""
        self._asked[question.group] = question

    def answers(self) -> list[Answer]:
        """Act for every group that has asked, unless it waits for newer parameters than there are."""
        if not self._asked:
            return []
        self._inference.refresh()
        able = [question for question in self._asked.values() if question.newer_than < self._inference.version]
        for question in able:
            del self._asked[question.group]
        return self._inference.act(able)

    def waits(self) -> str:
        """Say who must answer."""
        return awaited(self._inference.name, self._asked.values())


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
