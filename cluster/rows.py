"""Rows of JSON, one a line: what the run's files and `--json` hold."""

import json
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

import numpy as np


def as_row(event: Any) -> dict[str, Any]:
    """Return a dataclass's fields, not copied."""
    return {field.name: getattr(event, field.name) for field in fields(event)}


def json_line(row: Mapping[str, Any]) -> str:
    """Write a row that every JSON reader takes: a NaN, the mean of nothing, becomes null."""
    return json.dumps(plain(row), allow_nan=False)


def plain(value: Any) -> Any:
    """Return the same with Python's own numbers, NaN and infinity as None."""
    match value:
        case np.generic():
            return plain(value.item())
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
