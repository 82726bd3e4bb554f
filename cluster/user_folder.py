"""Where a person's own modules are found: the folder in which the command was called.

It comes last on the path of every process, so that nobody's own `actors/` or `learner/` stands in for ours.
"""

import os
import sys

VARIABLE = "STARLING_USER_FOLDER"


def own_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours, in whatever folder it is started."""
    return [sys.executable, "-P", "-m", name, *arguments]  # -P: what lies in that folder is not put first


def append_to_path(folder: str) -> None:
    """Let modules be found there, if nowhere else."""
    if folder not in sys.path:
        sys.path.append(folder)


def enter() -> None:
    """Work where the command was called: a run's processes start elsewhere, since Ray puts their folder first."""
    folder = os.environ.get(VARIABLE, os.getcwd())
    append_to_path(folder)
    os.chdir(folder)
