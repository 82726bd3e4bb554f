from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.config import Layer, build, parse_toml, read_toml
from starling.errors import ConfigError, check
from starling.flags import layers, split
from starling.toml import as_table, to_toml

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Env:
    id: str
    copies: int = 16
    kwargs: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check(self.learning_rate > 0.0, f"learning_rate must be > 0, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Learner:
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Replay:
    shards: int = 1
    capacity: int = 1000
    alpha: float = 0.6


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    double: bool = True
    hidden: tuple[int, ...] = (128, 128)
    kind: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True, kw_only=True)
class Tree(Generic[A]):
    env: Env
    algorithm: A
    replay: Replay = field(default_factory=Replay)
    learner: Learner = field(default_factory=Learner)
    goal: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        batch, capacity = self.learner.batch_size, self.replay.capacity
        check(batch <= capacity, f"learner.batch_size must be at most replay.capacity = {capacity}, got {batch}")


ENV = Layer("preset x", {"env": {"id": "CartPole-v1"}})


def from_toml(text: str) -> Tree[Algorithm]:
    tree: Tree[Algorithm] = build(Tree[Algorithm], ENV, parse_toml(text, "my.toml"))
    return tree


def from_flags(line: str) -> Tree[Algorithm]:
    tree: Tree[Algorithm] = build(Tree[Algorithm], ENV, *layers(split(line.split())[1], Tree[Algorithm]))
    return tree


def test_a_later_layer_wins_and_what_it_leaves_out_stays() -> None:
    file = parse_toml("seed = 3\n[replay]\nshards = 2\nalpha = 1\n[env.kwargs]\nsize = 4", "my.toml")
    flags = layers(split(["--replay.shards", "5", "--env.kwargs", "slip", "0.5"])[1], Tree[Algorithm])

    tree = build(Tree[Algorithm], ENV, file, *flags)

    assert tree.seed == 3
    assert tree.replay == Replay(shards=5, alpha=1.0)
    assert tree.env == Env(id="CartPole-v1", kwargs={"size": 4, "slip": 0.5})
    assert tree.algorithm == Algorithm()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = 'x'", "seed must be a whole number, got 'x' (from my.toml)"),
        ("seed = true", "seed must be a whole number, got True (from my.toml)"),
        ("seed = 1.0", "seed must be a whole number, got 1.0 (from my.toml)"),
        (f"seed = {2**63}", "seed must be a whole number below 2^63, got 9223372036854775808 (from my.toml)"),
        ("replay = 3", "replay must be a table, got 3 (from my.toml)"),
        ("replay.alpha = nan", "replay.alpha must be a finite number, got nan (from my.toml)"),
        ("replay.alpha = -inf", "replay.alpha must be a finite number, got -inf (from my.toml)"),
        ("replay.alpha = 1e400", "replay.alpha must be a finite number, got inf (from my.toml)"),
        ("goal = 'x'", "goal must be a finite number or \"none\", got 'x' (from my.toml)"),
        ("algorithm.double = 1", "algorithm.double must be true or false, got 1 (from my.toml)"),
        ("algorithm.hidden = 3", "algorithm.hidden must be a list, each a whole number, got 3 (from my.toml)"),
        ("algorithm.kind = 'sdg'", "algorithm.kind must be one of adam, sgd, got 'sdg' (from my.toml)"),
        (
            "env.kwargs = { a = [1] }",
            "env.kwargs must be a table, each value a string or a finite number or true or false, "
            "got {'a': [1]} (from my.toml)",
        ),
        ("replay.shard = 3", "replay.shard is not a setting (from my.toml); did you mean replay.shards?"),
        ("reply.shards = 3", "reply is not a setting (from my.toml); did you mean replay?"),
        ("shards = 3", "shards is not a setting (from my.toml); did you mean replay.shards?"),
        ("'replay.shards' = 3", "replay.shards is not a setting (from my.toml); did you mean replay.shards?"),
        ("'a\\nb' = 3", "'a\\\\nb' is not a setting (from my.toml)"),
        ("learner.optimizer.momentum = 1", "learner.optimizer.momentum is not a setting (from my.toml)"),
        (
            "learner.optimizer.learning_rate = -1",
            "learner.optimizer.learning_rate must be > 0, got -1.0 (from my.toml)",
        ),
        (
            "learner.batch_size = 5000",
            "learner.batch_size must be at most replay.capacity = 1000, got 5000 (from my.toml)",
        ),
        ("seed =", "my.toml is not valid TOML: Invalid value (at end of document)"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_toml(text)

    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--seed x", "seed must be a whole number, got x (from flag --seed)"),
        ("--seed", "seed must be a whole number, got nothing (from flag --seed)"),
        ("--seed 1 2", "seed must be a whole number, got 1 2 (from flag --seed)"),
        ("--replay.alpha nan", "replay.alpha must be a finite number, got nan (from flag --replay.alpha)"),
        (
            "--algorithm.double false",
            "algorithm.double must be set by --algorithm.double or --algorithm.no-double alone, got false",
        ),
        ("--algorithm.kind z", "algorithm.kind must be one of adam, sgd, got z (from flag --algorithm.kind)"),
        ("--replay.shard 3", "--replay.shard is not a flag; did you mean --replay.shards?"),
        ("--capacity 3", "--capacity is not a flag; did you mean --replay.capacity?"),
        ("--no-seed", "--no-seed is not a flag; did you mean --seed?"),
        ("--", "-- is not a flag"),
        (
            "--replay.capacity 32",
            "learner.batch_size must be at most replay.capacity = 32, got 64 (from flag --replay.capacity)",
        ),
        (
            "--learner.optimizer.learning-rate 0",
            "learner.optimizer.learning_rate must be > 0, got 0.0 (from flag --learner.optimizer.learning-rate)",
        ),
    ],
)
def test_a_mistake_in_a_flag_is_one_sentence(line: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_flags(line)

    assert str(refused.value) == sentence


def test_a_setting_without_default_must_be_set() -> None:
    with pytest.raises(ConfigError, match=r"^env\.id must be set$"):
        build(Tree[Algorithm])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--learner.batch-size 8", Learner(batch_size=8)),
        ("--learner.batch_size 8", Learner(batch_size=8)),
        ("--learner.batch-size=8", Learner(batch_size=8)),
        ("--learner.optimizer.learning-rate 1e-4", Learner(optimizer=Optimizer(learning_rate=1e-4))),
        ("--learner.batch-size 8 --learner.batch-size 9", Learner(batch_size=9)),
    ],
)
def test_a_flag_may_be_spelled_in_the_usual_ways(line: str, expected: Learner) -> None:
    assert from_flags(line).learner == expected


def test_flags_switch_list_and_take_away() -> None:
    tree = from_flags("--algorithm.no-double --algorithm.hidden 64 32 --goal none --seed -3")

    assert tree.algorithm == Algorithm(double=False, hidden=(64, 32))
    assert (tree.goal, tree.seed) == (None, -3)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = " + b"[" * 5000, b"seed = " + b"9" * 5000])
def test_an_unreadable_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"bad\.toml (must be UTF-8 text|is not valid TOML: .*)$"):
        read_toml(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_none_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: "):
        read_toml(tmp_path / name)


trees = st.builds(
    Tree[Algorithm],
    env=st.builds(
        Env,
        id=st.text(),
        copies=st.integers(-(2**62), 2**62),
        kwargs=st.dictionaries(
            st.text(), st.text() | st.integers(-9, 9) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
        ),
    ),
    algorithm=st.builds(Algorithm, hidden=st.lists(st.integers(0, 9)).map(tuple)),
    goal=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**62),
)


@given(tree=trees)
def test_what_is_written_is_read_back(tree: Tree[Algorithm]) -> None:
    text = to_toml(as_table(tree))

    assert build(Tree[Algorithm], parse_toml(text, "config.toml")) == tree


names = st.sampled_from(sorted({"id", *(field.name for cls in (Tree, Replay, Learner) for field in fields(cls))}))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=5), inner, max_size=4),
)


def refusal(make: Callable[[], Any]) -> str:
    try:
        make()
    except ConfigError as refused:
        return str(refused)
    return ""


@given(table=st.dictionaries(names | st.text(max_size=5), values, max_size=6))
def test_any_table_is_read_or_refused_in_one_line(table: dict[str, Any]) -> None:
    said = refusal(lambda: build(Tree[Algorithm], ENV, Layer("fuzz", table)))

    assert "\n" not in said
    assert len(said) < 400


@given(text=st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    assert "\n" not in refusal(lambda: from_toml(text))
