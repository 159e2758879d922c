"""How each published format is read. One file a format, one line of `CARDS`."""

from __future__ import annotations

from hdlm.hub.card import AbstractCard
from hdlm.hub.cards.bd3lm import BD3LM
from hdlm.hub.cards.duo import Duo
from hdlm.hub.cards.gidd import GIDD
from hdlm.hub.cards.mdlm import MDLM
from hdlm.hub.cards.published import PublishedEpsilon, PublishedGamma
from hdlm.hub.cards.sedd import SEDD

__all__ = ["CARDS"]

CARDS: tuple[AbstractCard, ...] = (
    PublishedEpsilon(),
    PublishedGamma(),
    MDLM(),
    SEDD(),
    BD3LM(),
    GIDD(),
    Duo(),
)
"""Every format that is known; for any weights exactly one of them may recognise itself."""
