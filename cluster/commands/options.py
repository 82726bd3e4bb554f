"""A command's arguments: what stands first, and flags of its own."""

from dataclasses import dataclass
from typing import TypeVar

from starling.config import build
from starling.errors import check
from starling.flags import help_text, layers, split

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsOptions:
    """Where to look."""

    runs: str = "runs"
    """folder of all runs"""


def wants_help(args: list[str]) -> bool:
    """Whether the command's help is asked for."""
    return "--help" in args or "-h" in args


def read(args: list[str], cls: type[T]) -> tuple[list[str], T]:
    """Return what stands before the flags, and the flags as options."""
    before, flags = split(args)
    return before, build(cls, *layers(flags, cls))


def only(before: list[str], command: str, what: str) -> str:
    """Return the one argument that a command takes before its flags."""
    got = " ".join(before) or "nothing"
    check(len(before) == 1, f"{command} must be given one {what} before its flags, got {got}")
    return before[0]


def print_help(default: object, command: str, argument: str, what: str) -> int:
    """Print a command's help."""
    print(help_text(default, f"starling {command} {argument}".strip(), what), end="")
    return 0
