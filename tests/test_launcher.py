"""What the next supervisor is told when one is lost."""

import pytest

from cluster.contents import Contents
from cluster.frames import Orders
from cluster.launcher import next_contents
from starling.state import State

STATES = {f"replay_server[{index}]": State(meta={"origin": 0, "snapshot": "000003-a"}) for index in range(2)}
STATES |= {"replay_server[2]": State(meta={"origin": 0}), "learner[0]": State()}


@pytest.mark.parametrize(
    ("before", "restored", "after"),
    [
        ("exact", [], "exact"),
        ("exact", [0], "exact"),
        ("exact", [0, 1], "newest"),
        ("new", [], "newest"),
        ("newest", [], "newest"),
        ("moved_exact", [0, 1], "moved_exact"),
    ],
)
def test_what_was_given_up_stays_out_until_every_shard_was_restored(
    before: Contents, restored: list[int], after: Contents
) -> None:
    orders = Orders(config="", launched_at=0.0, states=STATES, contents=before)

    assert next_contents(orders, {f"replay_server[{index}]" for index in restored}) == after
