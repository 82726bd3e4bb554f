"""The members of a run behind Ray: what is told of one that cannot be made, or was ended for want of memory."""

import time
from typing import Any, Never

import pytest

from tests.clusters import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_ray")]


def broken(**_: Any) -> Never:
    raise ValueError("a policy of 3 actions, got 2")


@pytest.mark.parametrize("kind", ["param_server", "replay_server", "inference", "actor"])
def test_a_role_that_cannot_be_made_says_why(kind: str) -> None:
    from cluster.members import Members

    told: list[tuple[str, dict[str, Any]]] = []
    members = Members(time.monotonic, lambda what, **facts: told.append((what, facts)))
    if kind in ("param_server", "replay_server"):
        members.server(kind, 0, broken)
    else:
        members.loop(kind, 0, broken, params=[members.server("param_server", 1, broken)])
    members.start()

    def told_of_it() -> list[tuple[str, dict[str, Any]]]:
        members.watch()
        return [(what, facts) for what, facts in told if facts["role"] == f"{kind}[0]"]

    until(lambda: len(told_of_it()) >= 2)

    (first, error), (second, lost) = told_of_it()[:2]
    assert (first, second) == ("role_error", "lost")
    assert "in broken" in error["error"]  # where it was
    assert lost["why"] == "ValueError: a policy of 3 actions, got 2"


class Crowded:
    """A parameter server that Ray ends when it is asked for its figures."""

    def stats(self) -> Never:
        from ray.exceptions import OutOfMemoryError

        raise OutOfMemoryError("Task was killed due to the node running low on memory.")


def test_a_role_that_ray_ends_for_want_of_memory_is_one_that_died() -> None:
    from cluster.members import Members

    told: list[tuple[str, dict[str, Any]]] = []
    members = Members(time.monotonic, lambda what, **facts: told.append((what, facts)))
    members.server("param_server", 0, lambda generation: Crowded())
    members.start()

    def watched() -> bool:
        members.watch()
        return bool(told)

    until(watched)

    assert told[0][0] == "lost"
    assert told[0][1]["why"] == "died: Ray ended it, since this machine's memory was nearly full"
