"""Flags: each is one setting by its dotted name, read by tyro, which also writes the help."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from starling.config import NONE, Layer, describe, did_you_mean, is_optional, leaves, shown_key, strictest_first
from starling.errors import ConfigError


class Flag(NamedTuple):
    """One flag as it was typed, with the values up to the next one."""

    name: str  # with its dashes
    values: list[str]

    @property
    def key(self) -> str:
        """The setting's dotted name as it is spelled in files."""
        return self.name[2:].replace("-", "_")


def split(args: Sequence[str]) -> tuple[list[str], list[Flag]]:
    """Return what stands before the first flag, and the flags."""
    before: list[str] = []
    flags: list[Flag] = []
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            flags.append(Flag(name, [value] if equals else []))
        else:
            (flags[-1].values if flags else before).append(arg)
    return before, flags


def key_of(flag: Flag, cls: Any) -> str | None:
    """Return the setting that a flag sets, `--replay.no-dedupe` included, or None if there is none."""
    kinds = dict(leaves(cls))
    if flag.key in kinds:
        return flag.key
    positive = re.sub(r"(^|\.)no_(?=[^.]*$)", r"\1", flag.key)
    return positive if kinds.get(positive) is bool else None


def layers(flags: Sequence[Flag], cls: Any, also: Iterable[str] = ()) -> Iterator[Layer]:
    """Read each flag as a layer of its own, so that a mistake names its flag; it may have meant one of `also`."""
    kinds = dict(leaves(cls))
    for flag in flags:
        origin = f"flag {flag.name}"
        key = key_of(flag, cls)
        if key is None:
            known = [f"--{name.replace('_', '-')}" for name in (*kinds, *also)]
            raise ConfigError(f"{shown_key(flag.name)} is not a flag{did_you_mean(flag.name, known)}")
        value: Any = _switch(flag, key) if kinds[key] is bool else _read(flag, key, kinds[key])
        for name in reversed(key.split(".")):
            value = {name: value}
        yield Layer(origin, value)


def help_text(default: Any, program: str, description: str) -> str:
    """Return tyro's help: every setting of the dataclass, its comment, and its present value."""
    import tyro  # 0.2 s: only for those who ask

    text = io.StringIO()
    try:
        with redirect_stdout(text):
            tyro.cli(type(default), args=["--help"], default=default, prog=program, description=description)
    except SystemExit:
        return text.getvalue()
    raise AssertionError("tyro shows its help by leaving")


def _switch(flag: Flag, key: str) -> bool:
    if flag.values:
        section, dot, name = flag.name[2:].removeprefix("no-").rpartition(".")
        name = name.removeprefix("no-")
        on, off = f"--{section}{dot}{name}", f"--{section}{dot}no-{name}"
        raise ConfigError(f"{key} must be set by {on} or {off} alone, got {' '.join(flag.values)}")
    return flag.key == key


def _read(flag: Flag, key: str, kind: Any) -> Any:
    import tyro  # 0.2 s: only for those who set something

    values = ["None" if value == NONE and is_optional(kind) else value for value in flag.values]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return tyro.cli(_as_tyro_reads(kind), args=values)
    except SystemExit:
        got = " ".join(flag.values) or "nothing"
        how = {dict: f"; write {flag.name} KEY VALUE", tuple: f"; write {flag.name} A B"}.get(get_origin(kind), "")
        raise ConfigError(f"{key} must be {describe(kind)}, got {got} (from flag {flag.name}){how}") from None


def _as_tyro_reads(kind: Any) -> Any:
    """Return a type with its unions reordered: tyro takes the first member that fits, and a string always does."""
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(strictest_first(get_args(kind)))]  # noqa: UP007 (made at run time)
    if get_origin(kind) is dict:
        return dict[str, _as_tyro_reads(get_args(kind)[1])]  # type: ignore[misc]
    return kind
