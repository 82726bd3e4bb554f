"""The inference role behind Ray, as an actor without networks knows it."""

from collections import deque
from typing import Any

import ray

from cluster.handles import LOST, Line
from starling import act_wire
from starling.questions import Answer, Question, awaited


class RemoteInference:
    """An ActionSource: each group's question is under way, or kept for the next incarnation, until it is answered.

    What was under way to an incarnation that died is asked again of its successor. That one says itself if the question
    needs what only its predecessor remembered.
    """

    def __init__(self, line: Line) -> None:
        self.lines = [line]
        self._line = line
        self._asked: dict[int, tuple[Question, Any]] = {}  # by group, each with its packed form
        self._sent: dict[int, int] = {}  # by group, the number of its question that was sent to this incarnation
        self._flying: deque[tuple[int, int]] = deque()  # group and number of each call, in order
        self._waits = False
        self._ready: set[Any] | None = None

    def ask(self, question: Question) -> None:
        """Send a question, or keep it until there is somebody to ask."""
        self._asked[question.group] = question, act_wire.encode_question(question)
        self._send()

    def answers(self) -> list[Answer]:
        """Return the answers that have come, without waiting."""
        come = []
        ready, self._ready = self._ready, None
        for packed in self._line.answers(ready):
            group, number = self._flying.popleft()
            if packed is LOST:
                self._sent.clear()
            elif packed is None:  # nobody acted: it took too long, or a later question took its place
                if self._sent.get(group) == number:
                    del self._sent[group]
            else:
                come.append(act_wire.decode_answer(packed))
                if self._asked[group][0].number == number:
                    del self._asked[group], self._sent[group]
        self._send()
        self._waits = not come
        return come

    def waits(self) -> str:
        """Say who must answer, or must come back first."""
        role = self._line.role
        down_s = self._line.down_s
        if down_s is not None:
            return f"{role}, down for {down_s:.0f} s"
        return awaited(role, (question for question, _ in self._asked.values()))

    def is_awaited(self) -> bool:
        """Say whether answers were looked for in vain, since they were last waited for."""
        waits, self._waits = self._waits, False
        return waits and len(self._line) > 0

    def wait(self, seconds: float) -> None:
        """Wait for the next answer, which comes first; who looks for it then need not ask again if it has come."""
        self._ready = set(ray.wait(self._line.in_flight()[:1], timeout=seconds)[0])

    def _send(self) -> None:
        for group, (question, packed) in self._asked.items():
            if self._line.down_s is None and self._sent.get(group) != question.number:
                self._line.send("act", packed)
                self._sent[group] = question.number
                self._flying.append((group, question.number))
