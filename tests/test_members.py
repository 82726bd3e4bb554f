"""The members of a run behind Ray: what is told of one that cannot be made."""

import time
from typing import Any, Never

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_ray")]

LIMIT_S = 30.0


def broken(**_: Any) -> Never:
    raise ValueError("a policy of 3 actions, got 2")


@pytest.mark.parametrize("kind", ["param_server", "inference", "actor"])
def test_a_role_that_cannot_be_made_says_why(kind: str) -> None:
    from cluster.members import Members

    told: list[tuple[str, dict[str, Any]]] = []
    members = Members(time.monotonic, lambda what, **facts: told.append((what, facts)))
    if kind == "param_server":
        members.server(kind, 0, broken)
    else:
        members.loop(kind, 0, broken, params=[members.server("param_server", 1, broken)])
    members.start()
    deadline = time.monotonic() + LIMIT_S
    while not [facts for what, facts in told if what == "lost" and facts["role"] == f"{kind}[0]"]:
        assert time.monotonic() < deadline
        members.watch()
        time.sleep(0.05)

    ((_, error), (_, lost)) = [(what, facts) for what, facts in told if facts["role"] == f"{kind}[0]"][:2]
    assert "in broken" in error["error"]  # where it was
    assert lost["why"] == "ValueError: a policy of 3 actions, got 2"
