"""The published formats. Each is one file and one line of `CARDS`."""

from __future__ import annotations

from hdlm.hub.card import AbstractCard
from hdlm.hub.cards.adapted import ADAPTED
from hdlm.hub.cards.bd3lm import BD3LMCard
from hdlm.hub.cards.causal import CausalCard
from hdlm.hub.cards.converted import ConvertedCard
from hdlm.hub.cards.diffusion_gemma import DiffusionGemmaCard
from hdlm.hub.cards.duo import DuoCard
from hdlm.hub.cards.gidd import GIDDCard
from hdlm.hub.cards.llada import LLaDACard
from hdlm.hub.cards.mdlm import MDLMCard
from hdlm.hub.cards.published import PublishedEpsilonCard, PublishedGammaCard
from hdlm.hub.cards.sedd import SEDDCard

__all__ = ["CARDS"]

CARDS: tuple[AbstractCard, ...] = (
    PublishedEpsilonCard(),
    PublishedGammaCard(),
    MDLMCard(),
    SEDDCard(),
    BD3LMCard(),
    GIDDCard(),
    DuoCard(),
    LLaDACard(),
    DiffusionGemmaCard(),
    *ADAPTED,
    CausalCard(),
    ConvertedCard(),
)
"""Every format that hdlm reads; exactly one of them may recognise a set of files."""
