"""Writes settings as TOML: the standard library reads it, and needs this little to be written."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from starling.config import NONE


def as_table(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested tables that `starling.config.build` reads back."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def to_toml(table: Mapping[str, Any], section: str = "") -> str:
    """Write tables: plain settings first, then one `[section]` for each table in them."""
    settings = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, _Section)]
    head = [f"[{section}]"] if section and settings else []
    blocks = ["\n".join(head + settings)] if settings else []
    for name, value in table.items():
        if isinstance(value, _Section):
            blocks.append(to_toml(value, f"{section}.{_key(name)}" if section else _key(name)).rstrip("\n"))
    return "\n\n".join(blocks) + "\n"


class _Section(dict[str, Any]):
    """A table that was a dataclass, and so has a heading of its own."""


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _Section(as_table(value))
    return NONE if value is None else value


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case tuple() | list():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            inner = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items())
            return f"{{{inner}}}"
    raise AssertionError(f"{type(value)} has no form in TOML")


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # all else that JSON escapes, TOML does too
