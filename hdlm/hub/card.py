"""A card says how one published format is read: what it looks like, and what its parts are called here.

    evidence (config, names and shapes of tensors)  ->  which card?  ->  blueprint  ->  weights  ->  Checkpoint

One file a format, in `hdlm.hub.cards`. A format is recognised by what is in its files, never by the name of a
repository or a folder, and never by trying until nothing fails. No code that travels with weights is ever run; what a
config says of code (`auto_map`) is ignored.
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
    """What lies at a source, before any of it is believed.

    Attributes:
        config: What its configuration says, nested plain values with interpolations resolved; empty if it has none.
        shapes: Name and shape of every tensor in its weights.
        origin: What to call it in an error.
        mask_token: Id of the mask in the tokenizer beside the weights, if there is one that has a mask.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    origin: str
    mask_token: int | None = None


@final
@dataclass(frozen=True)
class Blueprint:
    """Everything of a checkpoint but its weights, and where in the file these are.

    Attributes:
        network: Shape of the network.
        vocabulary: What its tokens mean here: words first, the mask last.
        process: How tokens are noised.
        parameterization: What its outputs mean.
        noise_schedule: How fast noise came in training.
        hyperschedules: What it was trained on, the one it generates best by first.
        tensors: Name in the file of each parameter of the network (buffers need none: they are computed).
        ignored: Other names that the format is known to have, and why they are not needed. A name in the file that is
            neither here nor in `tensors` is an error.
        mask_row: Row of the mask in the file's embedding and output, where it is not the last: it is moved there, and
            ids above it move down by one.
        padding: Rows of the file's embedding and output that stand for nothing: they were added behind the words and
            the mask to make a round number, and are left out.
        spare_rows: Whether the network may have rows for which its tokenizer has no word.
        adds_mask: Whether the file has no row for a mask, so that one is added: the mean of the others.
        tokenizer: Name of the tokenizer it was trained with, or None if it does not say.
        context: What settled positions saw of one another.
        active: What active positions saw of one another.
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
    """How one format is read. A subclass is final and stateless.

    Attributes:
        name: What people call the format.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def recognises(self, evidence: Evidence) -> bool:
        """Whether this is the format; must not raise, whatever the evidence."""

    @abc.abstractmethod
    def blueprint(self, evidence: Evidence) -> Blueprint:
        """What the model is.

        Raises:
            ValueError: If something that is needed is missing or contradicts itself; the message names it.
        """
