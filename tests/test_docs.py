"""What the documents say is so: their examples are run, their commands are ours, and their links lead somewhere."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cluster.cli import COMMANDS, FAILED, INTERRUPTED, OK, UNREACHABLE, USAGE, main
from cluster.config import load, presets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MADE_BY_A_COMMAND = {"docs/results.jsonl", "docs/results.md"}
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: str, language: str = "") -> list[str]:
    """Return the fenced blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for marked, text in fenced if marked == language]


def commands(page: str) -> Iterator[list[str]]:
    """Yield every `starling ...` that stands on a line of its own."""
    for block in blocks(page):
        for line in block.splitlines():
            if line.startswith("starling "):
                yield shlex.split(line.partition("#")[0])[1:]


def said(args: list[str]) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        return main(args), out.getvalue()


def test_the_readme_shows_the_example_as_it_is() -> None:
    assert blocks(README, "python") == [(ROOT / "examples" / "corridor.py").read_text()]
    assert blocks(README, "toml") == [(ROOT / "examples" / "corridor.toml").read_text()]


def test_the_replay_page_shows_its_example_as_it_is_and_it_runs() -> None:
    example = ROOT / "examples" / "replay_alone.py"

    ended = subprocess.run(
        [sys.executable, example],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert blocks((ROOT / "docs" / "replay.md").read_text(), "python") == [example.read_text()]
    assert "'obs': (2, 32, 4)" in ended.stdout


def test_an_environment_of_ones_own_is_learned_from_its_folder(tmp_path: Path) -> None:
    script = "import sys; from cluster.cli import main; sys.exit(main())"
    args = ["train", "corridor.toml", "--runtime", "local", "--seed", "1", "--plain", "--runs", str(tmp_path)]

    ended = subprocess.run(
        [sys.executable, "-P", "-c", script, *args],  # -P: the current folder is ours to add, not Python's
        cwd=ROOT / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "solved at" in ended.stdout


def test_the_readme_lists_every_command_preset_and_exit_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    codes = re.findall(r"^\| (\d+) \|", README, re.MULTILINE)

    assert {row.split()[1] for row in rows if row.startswith("starling ")} == set(COMMANDS)
    assert {preset.name for preset in presets()} <= set(rows)
    assert sorted(map(int, codes)) == sorted([OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED])


@pytest.mark.parametrize("args", list(commands(CONFIGURATION)), ids=" ".join)
def test_a_command_of_the_configuration_page_means_something(args: list[str]) -> None:
    code, text = said(args)

    assert code == 0, text
    assert text != said(args[:3])[1]


@pytest.mark.parametrize(
    ("command", "sentence"), re.findall(r"^\$ starling (.+)\n(starling: .+)$", CONFIGURATION, re.MULTILINE)
)
def test_a_mistake_is_answered_as_the_configuration_page_says(
    command: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert said(shlex.split(command)) == (2, f"{sentence}\n")
    assert not list(tmp_path.iterdir())


def test_the_file_of_the_configuration_page_lies_over_its_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(blocks(CONFIGURATION, "toml")[0])

    config = load(str(file))

    assert (config.seed, config.replay.capacity, config.algorithm.double) == (3, 50_000, False)
    assert config.env.id == "CartPole-v1"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    paths = re.findall(
        r"`((?:actors|cluster|docs|examples|learner|param_server|replay_server|starling|tests)/[^`*]*)`", text
    )

    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    missing += [path for path in {*paths} - MADE_BY_A_COMMAND if not (ROOT / path).exists()]
    assert missing == []
