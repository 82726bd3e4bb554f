import io
import json
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.board import Subject, clock, count, duration, ending, number, sparkline
from cluster.figures import figures
from cluster.report import EvaluationDone, Outcome, Sample
from cluster.terminal import Mode, make_view

SUBJECT = Subject(path=Path("runs/cartpole-01"), goal=475.0, samples_per_insert=2.0)


def snapshot(time_s: dict[str, float], **counts: int) -> dict[str, Any]:
    return {"time_s": time_s, "counts": counts, "gauges": {}, "histograms": {}}


def sample(elapsed_s: float, **busy: float) -> Sample:
    """Every role has worked for its share of the time, and waited for the rest."""
    share = {"actor": 0.5, "replay_server": 0.1, "learner": 0.9} | busy
    learner = snapshot({"computing": share["learner"] * elapsed_s, "waiting_batch": (1 - share["learner"]) * elapsed_s})
    learner["histograms"] = {"lag": [0, 10, 80, 10]}
    learner["gauges"] = {"inserted": 1000.0 * elapsed_s, "sampled": 1980.0 * elapsed_s}
    shard = snapshot(
        {"sampling": share["replay_server"] * elapsed_s, "idle": (1 - share["replay_server"]) * elapsed_s},
        windows_sampled=int(1980 * elapsed_s),
    )
    actor = snapshot({"stepping": share["actor"] * elapsed_s, "waiting_credit": (1 - share["actor"]) * elapsed_s})
    return Sample(
        elapsed_s=elapsed_s,
        env_steps=int(4120 * elapsed_s),
        updates=int(64 * elapsed_s),
        roles={"actor[0]": actor, "actor[1]": actor, "replay_server[0]": shard, "learner[0]": learner},
    )


def evaluation(mean: float) -> EvaluationDone:
    return EvaluationDone(elapsed_s=1.0, version=3, updates=30, env_steps=4000, mean=mean, std=9.0, episodes=100)


def outcome(reason: Any, best: float | None = 476.2) -> Outcome:
    return Outcome(reason=reason, env_steps=96_000, updates=3000, train_s=160.0, params_sha256="0", best_mean=best)


def shown(mode: Mode, samples: list[Sample], terminal: bool = False) -> str:
    out = io.StringIO()
    view = make_view(mode, SUBJECT, Console(file=out, force_terminal=terminal, width=110, no_color=True))
    before = None
    for now in samples:
        view.evaluated(evaluation(187.0))
        view.sampled(now, figures(before, now))
        before = now
    view.ended(outcome("goal"), Path("runs/cartpole-01/checkpoints/step-3000"))
    return out.getvalue()


def pushing(elapsed_s: float) -> Sample:
    """Two workers and two slices, of which one refuses a gradient in ten."""
    slices = [snapshot({"applying": 0.2 * elapsed_s, "idle": 0.8 * elapsed_s}, pushes_stale=n) for n in (0, 25)]
    for slice_ in slices:
        slice_["histograms"] = {"lag": [0, 90, 10]}
    worker = snapshot({"computing": 0.7 * elapsed_s, "waiting_values": 0.3 * elapsed_s})
    return Sample(
        elapsed_s=elapsed_s,
        env_steps=int(30_000 * elapsed_s),
        updates=int(250 * elapsed_s),
        roles={f"actor[{i}]": worker for i in range(2)} | {f"param_server[{i}]": slices[i] for i in range(2)},
    )


def test_a_run_of_gradients_shows_pushes_and_their_lag_instead_of_a_replay() -> None:
    text, plain = shown("live", [pushing(1.0), pushing(2.0)], terminal=True), shown("plain", [pushing(2.0)])

    assert "250 pushes/s" in text
    assert "lag p50 1 p95 2 · 25 stale · applying 20% · idle 80%" in text
    assert "actors x2" in text
    assert "slices x2" in text
    for word in ("replay", "learner", "samples"):
        assert word not in text
        assert word not in plain
    assert "lag p50 1" in plain
    assert "slowest: actor (busy 70%)" in plain


def test_rates_are_over_the_time_between_two_samples() -> None:
    found = figures(sample(1.0), sample(3.0))

    assert found.env_steps_per_s == 4120.0
    assert found.updates_per_s == 64.0
    assert found.windows_per_s == 1980.0
    assert found.samples_per_insert == 1.98


def test_the_first_sample_counts_from_the_start_and_an_empty_one_says_nothing() -> None:
    assert figures(None, sample(2.0)).env_steps_per_s == 4120.0

    nothing = figures(None, Sample(elapsed_s=0.0, env_steps=0, updates=0, roles={}))

    assert isnan(nothing.env_steps_per_s)
    assert isnan(nothing.samples_per_insert)
    assert isnan(nothing.lag_p50)
    assert nothing.slowest == ""


@pytest.mark.parametrize("slow", ["actor", "replay_server", "learner"])
def test_the_slowest_role_is_the_one_with_the_least_time_to_spare(slow: str) -> None:
    shares = {"actor": 0.2, "replay_server": 0.2, "learner": 0.2} | {slow: 0.95}

    assert figures(None, sample(1.0, **shares)).slowest == slow


def test_a_share_names_what_a_role_does_and_what_it_waits_for() -> None:
    found = figures(sample(1.0), sample(2.0))

    assert (found.works["learner"].state, found.waits["actor"].state) == ("computing", "waiting_credit")
    assert found.waits["actor"].share == pytest.approx(0.5)


def test_a_role_that_was_restarted_counts_from_its_new_start() -> None:
    found = figures(sample(10.0), sample(2.0))

    assert found.busy["learner"] == pytest.approx(0.9)
    assert found.lag_p50 >= 0.0 or isnan(found.lag_p50)


def test_the_live_table_has_a_line_for_each_kind_of_role_and_the_return() -> None:
    text = shown("live", [sample(1.0), sample(2.0)], terminal=True)

    assert "cartpole-01  00:00:02  8.24k steps" in text
    for part in ("actors x2", "4,120 steps/s", "replay x1", "samples/insert 1.98 (target 2)", "64 updates/s"):
        assert part in text
    assert "waiting credit 50%" in text
    assert "best 187 · goal 475" in text
    assert "─ slowest: learner (busy 90%) ─" in text


def test_those_who_act_for_actors_have_a_line_of_their_own() -> None:
    def with_inference(elapsed_s: float) -> Sample:
        acting = snapshot(
            {"acting": 0.3 * elapsed_s, "waiting_observations": 0.7 * elapsed_s}, copies=int(800 * elapsed_s)
        )
        acting["histograms"] = {"batch_copies": [0, 0, 0, 0, 0, int(100 * elapsed_s)]}
        now = sample(elapsed_s)
        return replace(now, roles={**now.roles, "inference[0]": acting})

    text = shown("live", [with_inference(1.0), with_inference(2.0)], terminal=True)

    assert "inference x1" in text
    assert "800 copies/s" in text
    assert "batch p50 16 · acting 30% · waiting observations 70%" in text
    assert "inference" not in shown("live", [sample(1.0), sample(2.0)], terminal=True)


def test_shards_that_do_not_answer_are_shown_only_then() -> None:
    now = sample(1.0)
    degraded = {**now.roles["learner[0]"]["gauges"], "degraded_shards": 1.0}
    learner = {**now.roles["learner[0]"], "gauges": degraded}
    without = replace(now, roles={**now.roles, "learner[0]": learner})

    assert "1 shard does not answer" in shown("live", [without], terminal=True)
    assert "1 shard does not answer" in shown("plain", [without])
    assert "not answer" not in shown("live", [now], terminal=True) + shown("plain", [now])


def test_the_live_table_without_a_terminal_is_plain_lines() -> None:
    text = shown("live", [sample(1.0)])

    assert "\x1b" not in text
    assert text.startswith(
        "00:00:01  4,120 steps (4,120/s)  64 updates (64/s)  samples per insert 1.98  lag p50 2 p95 4"
    )


def test_plain_lines_come_every_ten_seconds_of_the_run() -> None:
    text = shown("plain", [sample(float(second)) for second in range(1, 26)])

    assert [line[:8] for line in text.splitlines()] == ["00:00:01", "00:00:11", "00:00:21", "done  so", "next  st"]


def test_json_lines_are_json_lines() -> None:
    rows = [json.loads(line) for line in shown("json", [sample(1.0)]).splitlines()]

    assert [row["event"] for row in rows] == ["evaluation", "sample", "ended"]
    assert rows[1]["env_steps"] == 4120
    assert rows[2]["checkpoint"] == "runs/cartpole-01/checkpoints/step-3000"


def test_quiet_says_nothing() -> None:
    assert shown("quiet", [sample(1.0)]) == ""


def test_the_last_lines_say_how_it_ended_and_what_to_do_next() -> None:
    checkpoint = Path("runs/cartpole-01/checkpoints/step-3000")

    assert ending(outcome("goal"), SUBJECT, checkpoint) == [
        "done  solved at 96k steps (return 476 >= 475), 2 min 40 s.  checkpoint runs/cartpole-01/checkpoints/step-3000",
        "next  starling eval runs/cartpole-01 | starling show runs/cartpole-01",
    ]


@pytest.mark.parametrize(
    ("reason", "best", "said"),
    [
        ("asked", 21.0, "done  stopped after 96k steps as asked (best return 21), 2 min 40 s"),
        ("budget", 301.5, "done  budget of 96k steps spent (best return 302 < 475), 2 min 40 s"),
        ("interrupted", None, "done  interrupted after 96k steps (never evaluated), 2 min 40 s"),
    ],
)
def test_every_way_to_end_has_its_words(reason: str, best: float | None, said: str) -> None:
    assert ending(outcome(reason, best), SUBJECT, None) == [said]


def test_numbers_have_as_many_digits_as_matter() -> None:
    assert [number(value) for value in (4120.4, 64.0, 0.381234, -12.345, nan)] == ["4,120", "64", "0.381", "-12.3", "-"]
    assert [count(value) for value in (999, 8240, 96_000, 167_123, 2_000_000)] == ["999", "8.24k", "96k", "167k", "2M"]
    assert [clock(value) for value in (72.9, 3661.0)] == ["00:01:12", "01:01:01"]
    assert [duration(value) for value in (4.24, 59.96, 160.0, 3780.0)] == ["4.2 s", "60.0 s", "2 min 40 s", "1 h 3 min"]


def test_a_sparkline_rises_with_its_values_and_leaves_gaps() -> None:
    assert sparkline([0.0, 1.0, nan, 2.0]) == "▁▅ █"
    assert sparkline([]) == ""
    assert sparkline([-2.0, 0.0]) == "▁█"
