"""Published checkpoints: find their files, recognise their format, and load them."""

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards import CARDS
from hdlm.hub.load import LocatedCheckpoint, inspect, load

__all__ = ["CARDS", "AbstractCard", "Blueprint", "Evidence", "LocatedCheckpoint", "inspect", "load"]
