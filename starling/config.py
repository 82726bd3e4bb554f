"""Settings: tables from TOML and flags, laid over one another, become frozen dataclasses; nothing unknown passes.

Each mistake is one sentence: which setting, what it must be, what it is, and where it came from.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from starling.errors import ConfigError, check

T = TypeVar("T")
LARGEST = 2**63  # what TOML promises for whole numbers, and what arrays hold
NONE = "none"  # TOML has no null: an optional setting is switched off by this word


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings as nested tables, and where they came from."""

    origin: str  # "preset cartpole", "my.toml", "flag --replay.shards"
    values: Mapping[str, Any]


def build(cls: type[T], *layers: Layer) -> T:
    """Build the dataclass from its defaults and the layers, of which a later one wins."""
    kinds = dict(leaves(cls))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, raw in _flatten(layer.values, kinds, layer.origin):
            value = _read(key, raw, kinds[key], layer.origin)
            values[key] = (values.get(key) or {}) | value if isinstance(value, dict) else value
            origins[key] = layer.origin
    built: T = _construct(cls, "", values, origins)
    return built


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the type of every setting."""
    for field, kind in _settings(cls):
        key = prefix + field.name
        if _is_section(kind):
            yield from leaves(kind, f"{key}.")
        else:
            yield key, kind


def parse_toml(text: str, origin: str) -> Layer:
    """Read TOML text; `origin` names it in what is said about its settings."""
    try:
        return Layer(origin, tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits and a thousand nested lists raise these
        raise ConfigError(f"{origin} is not valid TOML: {_one_line(error)}") from None


def read_toml(path: Path) -> Layer:
    """Read a TOML file."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} must be UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    return parse_toml(text, str(path))


def unknown(key: str, known: Iterable[str], origin: str) -> ConfigError:
    """Say that a setting does not exist, and which one was probably meant."""
    return ConfigError(f"{shown_key(key)} is not a setting (from {origin}){did_you_mean(key, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest known word, or nothing when none is near.

    Of dotted words, those of the same section come first, and `shards` finds `replay.shards`.
    """
    word = word[:80]  # the search is quadratic, and the word may be anything
    names = list(known)
    section, _, last = word.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    cousins = {name.rpartition(".")[2]: name for name in reversed(names)}
    for sought, among, cutoff in (
        (last, siblings, 0.6),
        (word, {name: name for name in names}, 0.8),
        (last, cousins, 0.75),
    ):
        if near := get_close_matches(sought, among, 1, cutoff):
            return f"; did you mean {among[near[0]]}?"
    return ""


def describe(kind: Any) -> str:
    """Say in words what a setting of this type must be."""
    if kind in (bool, int, float, str):
        return {bool: "true or false", int: "a whole number", float: "a finite number", str: "a string"}[kind]
    match get_origin(kind), get_args(kind):
        case (origin, choices) if origin is Literal:
            return str(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(str, choices))}"
        case (origin, (kind, _)) if origin is tuple:
            return f"a list, each {describe(kind)}"
        case (origin, (_, kind)) if origin is dict:
            return f"a table, each value {describe(kind)}"
        case _, members:
            distinct = [member for member in members if not (member is int and float in members)]
            return " or ".join(f'"{NONE}"' if member is NoneType else describe(member) for member in distinct)


def shown(value: object) -> str:
    """Return a value as a message can hold it."""
    text = _short.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def shown_key(key: str) -> str:
    """Return a key as a message can hold it; anything may stand in a file."""
    return key if re.fullmatch(r"[\w.-]{1,80}", key) else shown(key)


def is_optional(kind: Any) -> bool:
    """Whether a setting of this type may be `none`."""
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def strictest_first(members: Sequence[Any]) -> list[Any]:
    """Order the types of a union: `none` before strings, a whole number before a float, a string last."""
    order = (NoneType, bool, int, float)
    return sorted(members, key=lambda kind: order.index(kind) if kind in order else len(order))


_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


class _MisfitError(Exception):
    """A value that is not of its setting's type."""


def _settings(cls: Any) -> list[tuple[Field[Any], Any]]:
    """Return the fields with their types, type variables filled in."""
    plain = get_origin(cls) or cls
    filled = dict(zip(getattr(plain, "__parameters__", ()), get_args(cls), strict=True))
    hints = get_type_hints(plain)
    return [(field, filled.get(hints[field.name], hints[field.name])) for field in fields(plain)]


def _is_section(kind: Any) -> bool:
    return is_dataclass(get_origin(kind) or kind)


def _flatten(
    table: Mapping[str, Any], kinds: Mapping[str, Any], origin: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    sections = {key[: dot.start()] for key in kinds for dot in re.finditer(r"\.", key)}
    for name, value in table.items():
        key = prefix + name
        # "replay.shards" = 3, in quotes, names one key with a dot in it, and there is none
        if "." in name or key not in (kinds.keys() | sections):
            raise unknown(key, [*kinds, *sorted(sections)], origin)
        if key in kinds:
            yield key, value
        elif isinstance(value, Mapping):
            yield from _flatten(value, kinds, origin, f"{key}.")
        else:
            raise ConfigError(f"{key} must be a table, got {shown(value)} (from {origin})")


def _read(key: str, raw: Any, kind: Any, origin: str) -> Any:
    try:
        return _convert(raw, kind)
    except _MisfitError:
        limit = " below 2^63" if type(raw) is int and abs(raw) >= LARGEST else ""
        raise ConfigError(f"{key} must be {describe(kind)}{limit}, got {shown(raw)} (from {origin})") from None


def _convert(raw: Any, kind: Any) -> Any:
    """Return the value as this type, or raise; nothing is guessed but a whole number for a float."""
    match get_origin(kind), get_args(kind):
        case None, _:
            return _convert_scalar(raw, kind)
        case (origin, choices) if origin is Literal:
            _require(any(raw == choice and type(raw) is type(choice) for choice in choices))
            return raw
        case (origin, (kind, _)) if origin is tuple:  # tuple[kind, ...]
            _require(isinstance(raw, list | tuple))
            return tuple(_convert(item, kind) for item in raw)
        case (origin, (_, kind)) if origin is dict:
            _require(isinstance(raw, Mapping))
            return {str(name): _convert(item, kind) for name, item in raw.items()}
        case (origin, members) if origin in (Union, UnionType):
            return _convert_to_first(raw, members)
    raise AssertionError(f"settings of type {kind} are not supported")


def _convert_scalar(raw: Any, kind: Any) -> Any:
    if kind is NoneType:
        _require(raw is None or raw == NONE)
        return None
    assert kind in (bool, int, float, str), f"settings of type {kind} are not supported"
    _require(type(raw) is kind or (kind is float and type(raw) is int))  # a bool is no int
    _require(type(raw) is not int or abs(raw) < LARGEST)
    _require(type(raw) is not float or isfinite(raw))
    return kind(raw)


def _convert_to_first(raw: Any, members: Sequence[Any]) -> Any:
    for member in strictest_first(members):
        try:
            return _convert(raw, member)
        except _MisfitError:
            continue
    raise _MisfitError


def _require(ok: bool) -> None:
    if not ok:
        raise _MisfitError


def _construct(cls: Any, prefix: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Any:
    arguments = {}
    for field, kind in _settings(cls):
        key = prefix + field.name
        if _is_section(kind):
            arguments[field.name] = _construct(kind, f"{key}.", values, origins)
        elif key in values:
            arguments[field.name] = values[key]
        else:
            check(field.default is not MISSING or field.default_factory is not MISSING, f"{key} must be set")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(_located(str(error), prefix, [key for key, _ in leaves(cls, prefix)], origins)) from None


def _located(message: str, prefix: str, keys: list[str], origins: Mapping[str, str]) -> str:
    """Give a dataclass's own complaint the dotted key of its subject, and say where its settings came from."""
    subject, _, rest = message.partition(" ")
    for key in (prefix + subject, prefix + subject.rsplit(".", 1)[-1]):
        if key in keys:
            message = f"{key} {rest}"
            break
    words = re.findall(r"[\w.]+\w", message)
    sources = dict.fromkeys(origins[word] for word in words if word in origins)
    return f"{message} (from {' and '.join(sources)})" if sources else message


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
