"""The tree of settings of each topology: which sections there are, and what is said of others."""

import pytest

from cluster.cli import main
from cluster.config import dump, load, parse
from starling.errors import ConfigError
from starling.flags import Flag


@pytest.mark.parametrize(
    ("source", "flag", "sentence"),
    [
        (
            "cartpole-a3c",
            "--replay.shards",
            "sections must be of env, algorithm, actor, params, evaluator, goal, checkpoint for this algorithm, "
            "got replay (from flag --replay.shards)",
        ),
        (
            "cartpole",
            "--params.slices",
            "sections must be of env, algorithm, actor, inference, replay, learner, evaluator, goal, checkpoint for "
            "this algorithm, got params (from flag --params.slices)",
        ),
        ("cartpole-a3c", "--params.slizes", "--params.slizes is not a flag; did you mean --params.slices?"),
        ("cartpole-a3c", "--actor.fetch-every", "--actor.fetch-every is not a flag"),
    ],
)
def test_a_section_of_another_topology_is_refused(source: str, flag: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(source, [Flag(flag, ["2"])])

    assert str(refusal.value) == sentence


@pytest.mark.parametrize("source", ["cartpole", "cartpole-a3c", "cartpole-async-q", "gridworld", "pendulum-a3c"])
def test_every_preset_is_read_back_as_it_was_written(source: str) -> None:
    assert parse(dump(load(source))) == load(source)


def test_what_needs_a_replay_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "actors", "--preset", "cartpole-a3c"]) == 2
    assert main(["train", "cartpole-a3c", "--fill", "data.npz"]) == 2

    assert capsys.readouterr().err.splitlines() == [
        "starling: preset cartpole-a3c must be of an algorithm with a replay; a3c has none",
        "starling: a run that begins with recorded data must be of an algorithm with a replay; a3c has none",
    ]
