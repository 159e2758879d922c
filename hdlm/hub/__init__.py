"""Weights of the world: published checkpoints in, this project's out."""

from __future__ import annotations

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards import CARDS
from hdlm.hub.load import Found, inspect, load

__all__ = ["CARDS", "AbstractCard", "Blueprint", "Evidence", "Found", "inspect", "load"]
