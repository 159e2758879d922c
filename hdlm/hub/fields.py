"""Checked values of foreign configs; errors name the key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

__all__ = ["Fields", "unknown_keys"]

_REQUIRED: Final = object()


@final
@dataclass(frozen=True)
class Fields:
    """The values of a nested config by dotted key. A null value counts as absent.

    Attributes:
        config: The nested config.
        origin: Name of the config in messages.
    """

    config: Mapping[str, Any]
    origin: str

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        """A positive integer."""
        value = self._or(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, "a positive integer", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self._or(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < float("inf"):
            raise self._wrong(key, "a number", value)
        return float(value)

    def switch(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self._or(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def choice(self, key: str, choices: Collection[str], default: Any = _REQUIRED) -> str:
        """One of some words."""
        value = self._or(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}", value)
        return value

    def _or(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None and default is _REQUIRED:
            raise ValueError(f"{self.origin}: its config lacks `{key}`.")
        return default if value is None else value

    def _wrong(self, key: str, wanted: str, got: Any) -> ValueError:
        return ValueError(f"{self.origin}: `{key}` of its config must be {wanted}; got {got!r}.")


def unknown_keys(config: Mapping[str, Any], known: Collection[str], above: str = "") -> tuple[str, ...]:
    """Dotted keys that are not known, in alphabetical order; for a table with no known key, only its own key."""
    unknown: list[str] = []
    for name, value in config.items():
        key = f"{above}{name}"
        if key in known:
            continue
        if isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in known):
            unknown += unknown_keys(value, known, f"{key}.")
        else:
            unknown.append(key)
    return tuple(sorted(unknown))
