import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path

import psutil
import pytest

from cluster import checkup
from cluster.checkup import GIB, MIB, Disk, Finding, Requirement, Temp, Trial
from cluster.cli import main as starling
from cluster.commands import doctor
from cluster.trials import attempt
from starling.failpoints import NAMES

ROOT = Path(__file__).parents[1]
RAY_ANSWER = {"start_s": 3.0, "answer_s": 0.2, "open": [], "private": True}
ENV_ANSWER = {"obs": "4 float32", "actions": "2 actions", "steps_per_s": 20_000.0}
WITNESS = "STARLING_TEST_WITNESS"
"""Children inherit it, so that those of one test are found."""


class Attempts:
    """Answers trials as it is told, and remembers them."""

    def __init__(self, ray: Trial | None = None, env: Trial | None = None) -> None:
        self.trials = {"ray": ray or Trial(RAY_ANSWER), "env": env or Trial(ENV_ANSWER)}
        self.made: list[tuple[str, ...]] = []

    def __call__(self, name: str, *arguments: str, limit_s: float, stopped: Callable[[], bool]) -> Trial:
        self.made.append((name, *arguments))
        return self.trials[name]


def doctored(*flags: str, attempts: Attempts | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    with redirect_stdout(out):
        code = doctor.main([*flags], attempts or Attempts())
    return code, out.getvalue().splitlines()


def never() -> bool:
    return False


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


@pytest.fixture
def witnesses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Return what counts the processes that the test has started and that still live."""
    monkeypatch.setenv(WITNESS, str(tmp_path))
    own = os.getpid()

    def alive() -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != own and process.environ().get(WITNESS) == str(tmp_path):
                    found.append(process.name())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    return alive


def test_each_good_thing_is_ok_in_one_line() -> None:
    found = [
        *checkup.versions([Requirement("torch", ">=2.6,<2.14")], {"torch": "2.13.0+cpu"}, "cpu"),
        checkup.machine(2, 24 * GIB, 23 * GIB),
        checkup.shared_memory(GIB, 256 * MIB),
        checkup.loopback(""),
        checkup.token(None),
        checkup.token(0o600),
        checkup.temp_folder(Temp("/tmp")),
        checkup.runs_folder(Disk("runs", "", 50 * GIB, 400 * MIB)),
        checkup.environment("CartPole-v1", Trial(ENV_ANSWER)),
        checkup.ray_start(Trial(RAY_ANSWER)),
    ]

    assert [finding for finding in found if finding.level != "ok"] == []
    assert found[0].said == "torch 2.13.0 (cpu)"
    assert all("\n" not in finding.said and "->" not in finding.said for finding in found)


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        (checkup.machine(1, 8 * GIB, 7 * GIB), "warn", "1 core, 8 GiB of memory"),
        (checkup.machine(2, 4 * GIB, 2 * GIB), "warn", "2 GiB available -> end other programs"),
        (checkup.machine(8, 8 * GIB, GIB), "fail", "1 GiB available -> end other programs"),
        (checkup.shared_memory(64 * MIB, 256 * MIB), "warn", "/dev/shm has 64 MiB free, Ray wants 256 MiB"),
        (checkup.shared_memory(None, 256 * MIB), "warn", "no /dev/shm -> "),
        (checkup.loopback("Cannot assign requested address"), "fail", "Cannot assign requested address -> "),
        (checkup.token(0o644), "warn", "readable by others -> chmod 600 ~/.ray/auth_token"),
        (checkup.temp_folder(Temp("/x", "Read-only file system")), "fail", "Read-only file system -> set TMPDIR"),
        (checkup.temp_folder(Temp("/" + "x" * 60)), "fail", "too long for Ray's sockets -> set TMPDIR"),
        (checkup.temp_folder(Temp("/mnt/c", private=False)), "fail", "keeps no file private -> set TMPDIR"),
        (checkup.temp_folder(Temp("/t", sticky=False)), "warn", "anybody can replace files in /t -> chmod +t /t"),
        (checkup.runs_folder(Disk("r", "Permission denied")), "fail", "r cannot be written: Permission denied -> "),
        (checkup.runs_folder(Disk("r", "", 50 * MIB, 400 * MIB)), "fail", "r: 50 MiB free"),
        (checkup.runs_folder(Disk("r", "", 500 * MIB, 400 * MIB)), "warn", "-> make room"),
        (checkup.runs_folder(Disk("r", "", 50 * GIB, 2 * MIB)), "warn", "writes 2 MiB/s -> choose a faster disk"),
        (checkup.environment("X-v0", Trial(None, "X-v0 is not known")), "fail", "X-v0 is not known -> "),
        (checkup.ray_start(Trial(None, "no end after 20 s")), "fail", "Ray does not start: no end after 20 s -> "),
        (
            checkup.ray_start(Trial({**RAY_ANSWER, "private": False})),
            "fail",
            "Ray opened its folder to other users -> ",
        ),
        (
            checkup.ray_start(Trial({**RAY_ANSWER, "open": ["raylet 7 0.0.0.0:99"]})),
            "fail",
            "Ray is open to other machines at raylet 7 0.0.0.0:99 -> ",
        ),
    ],
)
def test_each_bad_thing_is_one_sentence_that_says_what_to_do(finding: Finding, level: str, said: str) -> None:
    assert finding.level == level
    assert said in finding.said
    assert " -> " in finding.said


@pytest.mark.parametrize(
    ("version", "rule", "fits"),
    [
        ("2.13.0+cpu", ">=2.6,<2.14", True),
        ("2.14.0", ">=2.6,<2.14", False),
        ("2.5.1", ">=2.6,<2.14", False),
        ("2.6", ">=2.6.0", True),
        ("2.60.0", ">=2.60,<3", True),
        ("2.9.0", ">=2.60,<3", False),
        ("3.0.0rc1", ">=2.60,<3", False),
        ("3.11.7", ">=3.11", True),
        ("1.4", "!=1.4.0", False),
    ],
)
def test_a_version_is_compared_by_its_numbers(version: str, rule: str, fits: bool) -> None:
    assert checkup.within(version, rule) is fits


def test_a_package_that_does_not_fit_gets_a_line_with_the_command_that_mends_it() -> None:
    needed = checkup.requirements(["ray[default]>=2.60,<3", "numpy <3,>=2.0", 'pytest>=8; extra == "dev"'])

    findings = list(checkup.versions(needed, {"ray": "2.40.0", "numpy": None}, "cpu"))

    assert [finding.said for finding in findings] == [
        "ray must be >=2.60,<3, got 2.40.0 -> pip install 'ray[default]>=2.60,<3'",
        "numpy must be <3,>=2.0, got nothing -> pip install 'numpy<3,>=2.0'",
    ]


def test_every_requirement_of_this_checkout_is_understood_and_fulfilled_here() -> None:
    needed = doctor.required()

    found = {"python": sys.version.split()[0], **{each.name: doctor.installed(each.name) for each in needed[1:]}}

    assert {"python", "torch", "ray", "gymnasium", "numpy"} <= {each.name for each in needed}
    assert all(each.rule.startswith(tuple("<>=!")) for each in needed)
    assert levels(checkup.versions(needed, found, doctor.torch_build())) == ["ok"]


def test_this_machines_folders_are_measured_and_left_as_they_were(tmp_path: Path) -> None:
    seconds = count(0.0, 0.2)

    disk = doctor.measure_disk(tmp_path / "not" / "there" / "yet", lambda: next(seconds))

    assert disk.error == ""
    assert disk.free_bytes > 0
    assert disk.written_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_that_is_a_file_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")

    assert checkup.runs_folder(doctor.measure_disk(tmp_path / "runs")).level == "fail"


def test_a_temp_folder_that_others_may_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    temp = doctor.measure_temp()

    assert temp == Temp(str(tmp_path), private=True, sticky=False)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_prints_a_line_for_each_check_and_the_next_step(tmp_path: Path) -> None:
    code, lines = doctored("--runs", str(tmp_path))

    assert code == 0
    assert {line[:5] for line in lines[:-1]} <= {" ok  ", "warn "}
    assert lines[-3].endswith("CartPole-v1: observations 4 float32, 2 actions, 20,000 steps/s in one copy")
    assert lines[-2] == " ok  Ray started in 3.0 s, its first actor answered after 0.2 s more, all on loopback"
    assert lines[-1] == "next  starling train cartpole"


def test_a_failed_check_is_exit_code_1_and_the_others_are_made_all_the_same(tmp_path: Path) -> None:
    attempts = Attempts(env=Trial(None, "X-v0 is not known"))

    code, lines = doctored("--runs", str(tmp_path), "--env", "X-v0", attempts=attempts)

    assert code == 1
    assert attempts.made == [("env", "X-v0"), ("ray",)]
    assert lines[-2].startswith("fail X-v0 is not known")
    assert lines[-1].startswith(" ok  Ray started")


def test_no_ray_is_started_if_none_is_wanted_and_json_is_a_line_a_check(tmp_path: Path) -> None:
    attempts = Attempts()

    code, lines = doctored("--no-ray", "--json", "--runs", str(tmp_path), attempts=attempts)

    assert code == 0
    assert attempts.made == [("env", "CartPole-v1")]
    assert [json.loads(line)["check"] for line in lines][-1] == "environment"
    assert {"check", "level", "said"} == set(json.loads(lines[0]))


@pytest.mark.parametrize("args", [["CartPole-v1"], ["--rays"], ["--env"]])
def test_a_call_that_makes_no_sense_is_exit_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert starling(["doctor", *args]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_failpoints_are_printed_and_nothing_is_checked() -> None:
    attempts = Attempts()

    code, lines = doctored("--failpoints", attempts=attempts)

    assert code == 0
    assert lines == list(NAMES)
    assert attempts.made == []


def test_asking_the_doctor_loads_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from cluster.commands import doctor; from cluster.checkup import Trial\n"
        "doctor.main(['--no-ray'], lambda *_, **__: Trial(None, ''))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    )

    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_an_environment_is_made_and_stepped_in_a_process_of_its_own(witnesses: Callable[[], list[str]]) -> None:
    trial = attempt("env", "starling.gridworld:GridWorld", limit_s=30.0, stopped=never)

    assert trial.answer is not None
    assert trial.answer["actions"] == "4 actions"
    assert trial.answer["steps_per_s"] > 0
    assert witnesses() == []


def test_an_environment_that_hangs_is_ended_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, witnesses: Callable[[], list[str]]
) -> None:
    (tmp_path / "stuck.py").write_text(
        "import subprocess, time\ndef make():\n    subprocess.Popen(['sleep', '60'])\n    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    trial = attempt("env", "stuck:make", limit_s=1.0, stopped=never)

    assert trial == Trial(None, "no end after 1 s")
    assert witnesses() == []


def test_an_environment_that_crashes_is_told_by_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crash.py").write_text("import os\ndef make():\n    os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    assert attempt("env", "crash:make", limit_s=30.0, stopped=never) == Trial(None, "ended by SIGABRT")


def test_a_request_to_stop_ends_a_trial_at_once(witnesses: Callable[[], list[str]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt("env", "CartPole-v1", limit_s=30.0, stopped=lambda: True)

    assert witnesses() == []


@pytest.mark.cluster
def test_a_ray_starts_answers_on_loopback_alone_and_is_gone_afterwards(witnesses: Callable[[], list[str]]) -> None:
    trial = attempt("ray", limit_s=60.0, stopped=never)

    assert trial.answer is not None, trial.said
    assert checkup.ray_start(trial).level == "ok"
    assert witnesses() == []
