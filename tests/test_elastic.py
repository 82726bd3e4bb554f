"""Real runs that go on, also with more shards or fewer: what the shards hold is shared anew, the account goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import NEVER, TrainingRun
from tests.test_kill import events, outcome, train

pytestmark = pytest.mark.cluster

SETTINGS = (*NEVER, "--checkpoint.every", "50", "--evaluator.episodes", "5")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run in it, `a`, that is to be copied and gone on with."""
    runs = tmp_path_factory.mktemp("begun")
    go_on(runs, steps=8_000)
    return runs


def go_on(runs: Path, *flags: str, steps: int, held: int = 1) -> None:
    """Let run `a` come to this step, and all its shards to some rows and together to this many."""
    with TrainingRun(runs, "--if-exists", "resume", *SETTINGS, *flags, name="a") as run:
        before = len(run.events("began"))
        run.until(lambda: len(run.events("began")) > before, "the first step")  # rows are of earlier legs until then
        run.until(lambda: run.newest().get("env_steps", 0) >= steps, f"step {steps}")
        run.until(lambda: all(rows_held(run.path)) and sum(rows_held(run.path)) >= held, f"{held} rows in all shards")
        run.until(lambda: not (run.path / "replay" / "moved").exists(), "a checkpoint of what was moved")
        run.interrupt()
        assert run.end() == 130, run.stderr.read_text()
        assert run.deaths() == []


def rows_held(run: Path) -> list[int]:
    roles = samples(run)[-1]["roles"].items()
    return [int(role.get("gauges", {}).get("rows", 0)) for name, role in roles if "replay" in name]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()]


def test_from_two_shards_to_one_and_on_to_three_a_run_keeps_what_it_has_seen(begun: Path, tmp_path: Path) -> None:
    run = shutil.copytree(begun, tmp_path, dirs_exist_ok=True) / "a"
    held, updates = [sum(rows_held(run))], [outcome(run)["updates"]]
    for shards, steps in (("1", 24_000), ("3", 60_000)):
        more = ("--replay.shards", shards, "--actor.num", "3")
        go_on(tmp_path, *more, steps=steps, held=held[-1])
        held.append(sum(rows_held(run)))
        updates.append(outcome(run)["updates"])

    first, *rest = [event for event in events(run) if event["event"] == "replay_restored"]
    assert first["role"] == "replay_server[0]"
    assert {event["role"] for event in rest} == {f"replay_server[{shard}]" for shard in range(3)}
    assert first["rows"] >= held[0]
    assert sum(event["rows"] for event in rest) >= held[1]
    assert 0 < updates[0] < updates[1] < updates[2]
    checkpoints = [event for event in events(run) if event["event"] == "checkpoint" and event["number"]]
    for clock, rows in (
        ("env_steps", checkpoints),
        ("env_steps", samples(run)),
        ("updates", checkpoints),
        ("version", checkpoints),
    ):
        assert [row[clock] for row in rows] == sorted(row[clock] for row in rows)
    assert outcome(run)["env_steps"] >= 60_000
    assert held[-1] > 10_000
    assert 1.5 < samples(run)[-1]["figures"]["samples_per_insert"] < 2.2
    assert not {"replay_damaged", "replay_lost", "role_error"} & {event["event"] for event in events(run)}
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
