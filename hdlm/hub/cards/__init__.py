"""How each published format is read. One file a format, one line of `CARDS`."""

from __future__ import annotations

from hdlm.hub.card import AbstractCard

__all__ = ["CARDS"]

CARDS: tuple[AbstractCard, ...] = ()
"""Every format that is known; for any weights exactly one of them may recognise itself."""
