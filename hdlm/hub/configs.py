"""Configs of other programs: JSON or YAML to plain nested values, with interpolations resolved. Nothing is run.

Only values that JSON can express are read: YAML tags that build objects, anchors (a few lines of which can stand for
gigabytes) and resolvers such as `${oc.env:HOME}` have no effect. `${dotted.key}` is replaced by the value of that key,
if it is a scalar; any other interpolation stays as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from hdlm.strict_config import one_line

__all__ = ["read_config", "resolve_interpolations"]

LARGEST = 4 * 2**20
"""Bytes of the largest config that is read."""
LONGEST_TEXT = 10_000
"""Characters of a text after its interpolations."""

_INTERPOLATION = re.compile(r"\$\{([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\}")
_FLOAT_WITHOUT_POINT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_ABSENT = object()


def read_config(path: Path) -> dict[str, Any]:
    """Read a `.json`, `.yaml` or `.yml` file.

    Raises:
        ValueError: If it is too large, damaged, not a table, or holds what a config never needs; the message names it.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a config has at most {LARGEST}.")
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else _load_yaml(text, path)
        if not isinstance(config, dict):
            raise ValueError(f"it is not a table but a {type(config).__name__}")
        return resolve_interpolations(_plain(config))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a config: {one_line(error).rstrip('.')}.") from error


def resolve_interpolations(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace `${dotted.key}` everywhere.

    Raises:
        ValueError: If keys refer to one another in a circle, or a text grows without bound.
    """
    resolved: dict[str, Any] = _Resolver(config).of(config)
    return resolved


@final
class _Resolver:
    """Caches what it has resolved, so that every key is looked up once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.known: dict[str, Any] = {}
        self.pending: list[str] = []

    def of(self, value: Any) -> Any:
        """The value with its interpolations resolved."""
        if isinstance(value, Mapping):
            return {key: self.of(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.of(part) for part in value]
        return self.of_text(value) if isinstance(value, str) else value

    def of_text(self, text: str) -> Any:
        """A text with its interpolations resolved; the value itself if the text is one interpolation."""
        whole = _INTERPOLATION.fullmatch(text)
        if whole:
            value = self.at(whole[1])
            return text if value is _ABSENT else value
        filled = _INTERPOLATION.sub(
            lambda match: match[0] if (value := self.at(match[1])) is _ABSENT else str(value), text
        )
        if len(filled) > LONGEST_TEXT and filled != text:
            raise ValueError(f"interpolations make a text of more than {LONGEST_TEXT} characters")
        return filled

    def at(self, key: str) -> Any:
        """The scalar that a dotted key names, or `_ABSENT`."""
        if key in self.pending:
            raise ValueError(f"keys refer to one another in a circle: {' -> '.join([*self.pending, key])}")
        if key not in self.known:
            self.pending.append(key)
            value = _look_up(self.config, key.split("."))
            self.known[key] = self.of_text(value) if isinstance(value, str) else value
            self.pending.pop()
        return self.known[key]


def _look_up(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
    return _ABSENT if isinstance(value, Mapping | list) else value


def _load_yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise OSError(f"{path} is YAML; to read it, install PyYAML: pip install 'hdlm[hub]'.") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain values only; `1e-4` is a number, as in hydra, and a date is text."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it uses YAML anchors, which configs never need")
            return super().compose_node(parent, index)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error


def _plain(value: Any) -> Any:
    """A copy of values, if JSON can express them."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}, which no config needs")
