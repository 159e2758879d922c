"""A card describes how a published format is recognised and read.

    evidence (config, names and shapes of tensors)  ->  which card?  ->  blueprint  ->  weights  ->  Checkpoint

Each format is one file in `hdlm.hub.cards`. A format is recognised by the content of its files, never by the name of a
repository or a folder, and never by trial and error. Code that comes with weights is never run; references to code in a
config (`auto_map`) are ignored.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from hdlm.attention import Active, Context
from hdlm.checkpoint.weights import Stored
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import NetworkShape
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.parameterization import AbstractParameterization
from hdlm.process import AbstractNoiseProcess
from hdlm.vocabulary import Vocabulary

__all__ = ["AbstractCard", "Blueprint", "Evidence"]


@final
@dataclass(frozen=True)
class Evidence:
    """The unchecked content of a source.

    Attributes:
        config: Its configuration, nested plain values with interpolations resolved; empty if it has none.
        shapes: Name and shape of every tensor in its weights.
        origin: Name of the source in messages.
        mask_token: Id of the mask in the tokenizer beside the weights, if that tokenizer has a mask.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    origin: str
    mask_token: int | None = None


@final
@dataclass(frozen=True)
class Blueprint:
    """A checkpoint without its weights, and the names of the weights in the file.

    Attributes:
        network: Configuration of the network.
        vocabulary: Meaning of its tokens: words first, the mask last.
        process: The noise process.
        parameterization: Meaning of its outputs.
        noise_schedule: Noise as a function of time in training.
        hyperschedules: Hyperschedules of its training, the best one for generation first.
        tensors: Name in the file of each parameter of the network (buffers need none: they are computed).
        ignored: Other known names of the format, and why they are not needed. A name in the file that is neither here
            nor in `tensors` is an error.
        mask_row: Row of the mask in the file's embedding and output, if it is not the last: it is moved there, and
            larger ids decrease by one.
        padding: Unused rows of the file's embedding and output, added after the words and the mask to make a round
            number; they are removed.
        spare_rows: Whether the network may have rows for which its tokenizer has no word.
        adds_mask: Whether the file has no row for a mask, so that one is added: the mean of the others.
        tokenizer: Name of the tokenizer it was trained with, or None if it is unknown.
        context: Attention between settled positions.
        active: Attention between active positions.
        unknown: Dotted keys of the config that this card does not know; they are kept and reported.
    """

    network: NetworkShape
    vocabulary: Vocabulary
    process: AbstractNoiseProcess
    parameterization: AbstractParameterization
    noise_schedule: AbstractNoiseSchedule = LINEAR
    hyperschedules: tuple[AbstractHyperschedule, ...] = ()
    tensors: Mapping[str, str | Stored] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    mask_row: int | None = None
    padding: int = 0
    spare_rows: bool = False
    adds_mask: bool = False
    tokenizer: str | None = None
    context: Context = "block_causal"
    active: Active = "full"
    unknown: tuple[str, ...] = ()


class AbstractCard(abc.ABC):
    """The description of one format. A subclass is final and stateless.

    Attributes:
        name: Common name of the format.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def recognises(self, evidence: Evidence) -> bool:
        """Whether this is the format; it must not raise, whatever the evidence."""

    @abc.abstractmethod
    def blueprint(self, evidence: Evidence) -> Blueprint:
        """Describe the model.

        Raises:
            ValueError: If something is missing or contradictory; the message names it.
        """
