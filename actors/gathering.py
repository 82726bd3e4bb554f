"""Which questions are acted on together, and when."""

from collections.abc import Iterable

from starling.questions import Question


class Gathering:
    """Questions that wait to be acted on, oldest first.

    A batch is due once every actor that is expected has a question among them, and at the latest `deadline_s` after its
    oldest came; an actor is expected from its first question on, until it was waited for in vain. So a question waits
    for others at most `deadline_s`, and then only for batches of older ones, whatever comes meanwhile. A question that
    wants newer parameters than there are is held aside and expects nobody; nobody expects its actor.
    """

    def __init__(self, deadline_s: float, max_copies: int = 0) -> None:
        self._deadline_s = deadline_s
        self._max_copies = max_copies
        self._waiting: dict[tuple[int, int], tuple[Question, float]] = {}  # by actor and group, in order of arrival
        self._expected: set[int] = set()

    def add(self, question: Question, now: float) -> None:
        """Take in a question; it replaces an older one of its group."""
        key = question.actor, question.group
        self._waiting.pop(key, None)
        self._waiting[key] = question, now
        self._expected.add(question.actor)

    def wait_s(self, version: int, now: float) -> float | None:
        """Return in how many seconds a batch is due, 0 if one is; None while nobody can be acted for."""
        oldest = next((came for question, came in self._waiting.values() if question.newer_than < version), None)
        if oldest is None:
            return None
        left = oldest + self._deadline_s - now
        return max(left, 0.0) if self._missing() and not self._is_full(version) else 0.0

    def take(self, version: int) -> list[Question]:
        """Return the batch that is due; who is not there is expected no more."""
        self._expected -= self._missing()
        batch: list[Question] = []
        copies = 0
        for question, _ in self._waiting.values():
            if question.newer_than < version:
                copies += len(question.fresh)
                if batch and 0 < self._max_copies < copies:
                    break
                batch.append(question)
        for question in batch:
            del self._waiting[question.actor, question.group]
        return batch

    def drop(self, actor: int, group: int) -> None:
        """Forget a group's question."""
        self._waiting.pop((actor, group), None)

    def held(self, version: int) -> list[Question]:
        """Return the questions that wait for newer parameters than this version."""
        return [question for question, _ in self._waiting.values() if question.newer_than >= version]

    def _missing(self) -> set[int]:
        return self._expected - {actor for actor, _ in self._waiting}

    def _is_full(self, version: int) -> bool:
        return 0 < self._max_copies <= copies_of(q for q, _ in self._waiting.values() if q.newer_than < version)


def copies_of(questions: Iterable[Question]) -> int:
    """Return how many copies ask."""
    return sum(len(question.fresh) for question in questions)
