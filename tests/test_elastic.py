"""Real runs that go on with more shards, or fewer: what the shards hold is shared anew, and the account goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_kill import events, outcome, train

pytestmark = pytest.mark.cluster

SETTINGS = ("--goal.return-mean", "none", "--checkpoint.every", "50", "--evaluator.episodes", "5", "--quiet")


def rows_held(run: Path) -> int:
    return sum(int(role["gauges"]["rows"]) for name, role in last_sample(run)["roles"].items() if "replay" in name)


def last_sample(run: Path) -> dict[str, Any]:
    sample: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return sample


def go(*args: str) -> None:
    process = train(*args)
    assert process.wait() == 0, process.stderr and process.stderr.read()


def test_from_two_shards_to_one_and_on_to_three_a_run_keeps_what_it_has_seen(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path))
    run = tmp_path / "a"
    go("cartpole", "--run", "a", *runs, "--total-steps", "8000", *SETTINGS)
    held, counts = [rows_held(run)], [outcome(run)["updates"]]
    for shards, steps in (("1", "24000"), ("3", "40000")):
        more = ("--replay.shards", shards, "--actor.num", "3", "--total-steps", steps, "--quiet")
        go("--resume", "a", *runs, *more)
        held.append(rows_held(run))
        counts.append(outcome(run)["updates"])

    restored = [event["role"] for event in events(run) if event["event"] == "replay_restored"]
    assert restored[0] == "replay_server[0]"
    assert sorted(restored[1:]) == [f"replay_server[{shard}]" for shard in range(3)]  # in whatever order they are ready
    assert held == sorted(held)
    assert counts == sorted(counts)
    assert 1.0 < last_sample(run)["figures"]["samples_per_insert"] < 2.2
    assert not {"replay_damaged", "replay_lost", "role_error", "lost"} & {event["event"] for event in events(run)}
    assert not (run / "replay" / "moved").exists()


def test_a_snapshot_that_was_damaged_inside_is_refused_in_one_sentence(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path))
    go("cartpole", "--run", "a", *runs, "--total-steps", "4000", *SETTINGS)
    log = min(tmp_path.glob("a/replay/shard-0/live/*.seg"))  # its snapshot has the same bytes under another name
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)

    process = train("--resume", "a", *runs, "--total-steps", "40000", "--quiet")
    _, said = process.communicate()

    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert "shard-0" in said
    assert "is damaged at byte" in said
