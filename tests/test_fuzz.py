"""Whatever a person writes, the answer is one sentence and exit code 2, or the settings; nothing is begun."""

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.cli import main
from cluster.commands import train
from cluster.commands.train import TrainOptions
from cluster.config import Config, load
from starling.config import leaves
from starling.toml import to_toml

KEYS = [key for key, _ in leaves(train.type_of(load("cartpole")))]
FLAGS = [f"--{key.replace('_', '-')}" for key in (*KEYS, *(key for key, _ in leaves(TrainOptions)))]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-3, 3), st.floats(), st.sampled_from([10**400, 2**63, -1, 0, 1])
)
VALUES = st.recursive(
    st.one_of(st.booleans(), NUMBERS.filter(lambda n: n == n and abs(n) != float("inf")), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
WORDS = st.one_of(
    NUMBERS.map(str), TEXT, st.sampled_from(["none", "true", "nan", "inf", "--", "-1", "[1, 2]", "cartpole"])
)
ARGS = st.lists(st.one_of(st.sampled_from(FLAGS), WORDS, TEXT.map("--".__add__)), max_size=6)


def answer(args: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(args)
    return code, out.getvalue(), err.getvalue()


def assert_a_sentence_or_settings(code: int, out: str, err: str) -> None:
    if code == 0:
        assert err == ""
        return
    assert code == 2, err
    assert out == ""
    assert err.startswith("starling: ")
    assert err.count("\n") == 1
    assert "mistake of ours" not in err
    assert len(err) < 4000


def nested(table: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as tables; where a key is both a value and a table, the table stays."""
    tree: dict[str, Any] = {}
    for key, value in table.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place.setdefault(name, value)
    return tree


@settings(max_examples=60)
@given(args=ARGS)
@example(args=["--resume"])
@example(args=["--run", "x" * 300])
@example(args=["--run", "."])
def test_any_flags_are_answered_in_a_sentence(args: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        code, out, err = answer(["train", "cartpole", *args, "--dry-run", "--runs", f"{folder}/runs"])

        assert os.listdir(folder) == []
    if not {"--help", "-h"} & set(args):
        assert_a_sentence_or_settings(code, out, err)


@settings(max_examples=60)
@given(table=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), rest=st.dictionaries(TEXT, VALUES, max_size=1))
def test_any_settings_in_a_file_are_answered_in_a_sentence(table: dict[str, Any], rest: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text(to_toml({"preset": "cartpole", **rest, **nested(table)}), "utf-8")

        code, out, err = answer(["train", str(path), "--dry-run", "--runs", f"{folder}/runs"])

        assert os.listdir(folder) == ["mine.toml"]
    assert_a_sentence_or_settings(code, out, err)


@settings(max_examples=50)
@given(data=st.binary(max_size=200))
def test_any_bytes_in_a_file_are_answered_in_a_sentence(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(data)

        code, out, err = answer(["train", str(path), "--dry-run"])

    assert code == 2
    assert_a_sentence_or_settings(code, out, err)


@settings(max_examples=50)
@given(command=st.sampled_from(["eval", "show", "ls", "presets", "train"]), args=st.lists(TEXT, max_size=3))
def test_any_run_that_is_not_there_is_answered_in_a_sentence(command: str, args: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = [] if command == "presets" else ["--runs", f"{folder}/runs"]
        code, out, err = answer([command, *args, *where])

        assert os.listdir(folder) == []
    if not {"--help", "-h"} & set(args):
        assert_a_sentence_or_settings(code, out, err)


def test_the_keys_that_are_tried_are_all_that_there_are() -> None:
    assert {key.split(".")[0] for key in KEYS} >= {"goal", "checkpoint", "replay", "learner", "env"}
    assert issubclass(type(load("cartpole")), Config)
