"""Real runs that go on, also with more shards or fewer: what the shards hold is shared anew, the account goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.test_kill import events, outcome, train

pytestmark = pytest.mark.cluster

SETTINGS = ("--goal.return-mean", "none", "--checkpoint.every", "50", "--evaluator.episodes", "5", "--quiet")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run in it, `a`, that is to be copied and gone on with."""
    runs = tmp_path_factory.mktemp("begun")
    go("cartpole", "--run", "a", "--runs", str(runs), "--total-steps", "8000", *SETTINGS)
    return runs


def rows_held(run: Path) -> int:
    return sum(int(role["gauges"]["rows"]) for name, role in samples(run)[-1]["roles"].items() if "replay" in name)


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def go(*args: str) -> None:
    process = train(*args)
    assert process.wait() == 0, process.stderr and process.stderr.read()


def test_from_two_shards_to_one_and_on_to_three_a_run_keeps_what_it_has_seen(begun: Path, tmp_path: Path) -> None:
    run = shutil.copytree(begun, tmp_path, dirs_exist_ok=True) / "a"
    held, updates = [rows_held(run)], [outcome(run)["updates"]]
    for shards, steps in (("1", "24000"), ("3", "60000")):
        more = ("--replay.shards", shards, "--actor.num", "3", "--total-steps", steps, "--quiet")
        go("--resume", "a", "--runs", str(tmp_path), *more)
        held.append(rows_held(run))
        updates.append(outcome(run)["updates"])

    restored = [event["role"] for event in events(run) if event["event"] == "replay_restored"]
    assert restored[0] == "replay_server[0]"
    assert sorted(restored[1:]) == [f"replay_server[{shard}]" for shard in range(3)]  # in whatever order they are ready
    assert held == sorted(held)
    assert 0 < updates[0] < updates[1] < updates[2]
    checkpoints = [event for event in events(run) if event["event"] == "checkpoint" and event["number"]]
    for clock, rows in (("env_steps", checkpoints), ("env_steps", samples(run)), ("version", checkpoints)):
        assert [row[clock] for row in rows] == sorted(row[clock] for row in rows)
    assert outcome(run)["env_steps"] >= 60_000
    assert held[-1] > 10_000
    assert 1.5 < samples(run)[-1]["figures"]["samples_per_insert"] < 2.2
    assert not {"replay_damaged", "replay_lost", "role_error", "lost"} & {event["event"] for event in events(run)}
    assert not (run / "replay" / "moved").exists()


def test_a_snapshot_that_was_damaged_inside_is_refused_in_one_sentence(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    log = min(tmp_path.glob("a/replay/shard-0/live/*.seg"))  # its snapshot has the same bytes under another name
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    for copied in (tmp_path / "a/replay/shard-0").rglob(log.name):
        copied.write_bytes(content)

    process = train("--resume", "a", "--runs", str(tmp_path), "--total-steps", "40000", "--quiet")
    _, said = process.communicate()

    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert "shard-0" in said
    assert "is damaged at byte" in said
