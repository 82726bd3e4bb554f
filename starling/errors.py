"""What can go wrong, and how it is said.

StarlingError
├── UsageError          a person asked for something that cannot be: one sentence, exit code 2
│   ├── ConfigError     a setting: which one, what it must be, what it is
│   ├── EnvError        an environment that cannot be made, or has a space we do not support
│   ├── RunError        a run folder: missing, taken, unreadable
│   └── DataError       recorded data: which file, which array, what it must be, what it is
├── CodecError          bytes that are not what they claim to be
├── StuckError          everybody waits: says who waits for whom
├── RoleError           a role died, hung or cannot be reached
└── ClusterError        Ray cannot be started or reached: exit code 3
"""


class StarlingError(Exception):
    """Anything that Starling raises on purpose."""


class UsageError(StarlingError):
    """A person asked for something that cannot be; the message says what, where, and what to do."""


class ConfigError(UsageError):
    """A setting that is unknown, of the wrong type, or out of range."""


class EnvError(UsageError):
    """An environment that cannot be made or has a space that is not supported."""


class RunError(UsageError):
    """A run folder that is missing, taken, or unreadable."""


class DataError(UsageError):
    """Recorded data that cannot be learned from."""


class CodecError(StarlingError):
    """Bytes that are not what they claim to be."""


class StuckError(StarlingError):
    """Every role waits; the message says who waits for whom."""


class RoleError(StarlingError):
    """A role died, hung, or cannot be reached; the message names it and the limit it exceeded."""


class ClusterError(StarlingError):
    """Ray cannot be started or reached."""


def check(ok: bool, message: str) -> None:
    """Refuse a setting that a user can get wrong: `<setting> must be <rule>, got <value>`."""
    if not ok:
        raise ConfigError(message)
