"""Named places at which a test can let the process die, to see that what is on the disk is whole.

`STARLING_FAILPOINT=checkpoint.before_rename:2` ends the process without a word at the second time that it gets there.
Only `cluster.cli` arms a failpoint; without one, `reach` costs a comparison.
"""

import os
from dataclasses import dataclass

from starling.errors import check

VARIABLE = "STARLING_FAILPOINT"
DIED = 9  # the exit code

NAMES = (
    "run.before_config",
    "run.before_env",
    "run.before_new_config",
    "checkpoint.before_files",
    "checkpoint.between_files",
    "checkpoint.before_manifest",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "checkpoint.before_pointer",
    "checkpoint.between_pointers",
    "checkpoint.before_prune",
    "checkpoint.between_prunes",
    "replay.before_record",
    "replay.mid_record",
    "replay.after_record",
    "replay.before_index",
    "replay.before_snapshot_rename",
    "replay.after_snapshot_rename",
    "replay.before_retire",
    "replay.before_prune",
    "replay.before_live_rename",
    "replay.between_live_renames",
    "replay.after_live_rename",
)
"""Every durable step of a run, and of a shard of its replay, in the order in which one comes by"""


@dataclass(slots=True)
class _Armed:
    name: str = ""
    left: int = 0


_armed = _Armed()  # of the process, as its end is


def arm(setting: str) -> None:
    """Choose the failpoint at which this process dies, as `name:nth`; empty: none."""
    name, _, nth = setting.partition(":")
    fine = not setting or (name in NAMES and nth.isascii() and nth.isdigit() and int(nth) >= 1)
    check(fine, f"{VARIABLE} must be NAME:NTH with one of {', '.join(NAMES)}, got {setting!r:.100}")
    _armed.name, _armed.left = name, int(nth or 0)


def armed(name: str) -> bool:
    """Say whether this is where the process is to die: for a step that is done in one go unless somebody looks."""
    return name == _armed.name


def reach(name: str) -> None:
    """Die here, if this is the time."""
    assert name in NAMES, f"{name} is no failpoint"
    if name == _armed.name:
        _armed.left -= 1
        if _armed.left == 0:
            os._exit(DIED)
