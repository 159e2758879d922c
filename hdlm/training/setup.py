"""A run before its first step, built from its recipe.

recipe -> documents -> tokenizer -> streams -> denoiser and mixture -> trainer
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.data import Tokenizer, TokenStream
from hdlm.denoiser import Denoiser
from hdlm.network import AbstractNetwork, build_network
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.process import AbstractNoiseProcess
from hdlm.regime import Regime
from hdlm.strict_config import require
from hdlm.training.conversion import origin_of
from hdlm.training.distributed.accelerator import refuse_fsdp, shards_networks
from hdlm.training.loop import Trainer
from hdlm.training.lora import add_adapters
from hdlm.training.mixture import Mixture
from hdlm.training.recipe import Recipe
from hdlm.training.text import Corpora, TrainingText, read_training_text
from hdlm.vocabulary import Vocabulary

__all__ = ["TrainingSetup", "build_setup"]

_FREE = frozenset({"dropout", "max_length"})
"""Options of a network that no weight depends on; without a timestep embedding, `cond_dim` is another one."""


@final
@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a run needs before its first step.

    Attributes:
        recipe: The recipe of the run.
        text: Training text and validation text.
        denoiser: The model; training changes it in place.
        mixture: Determines what each step trains on.
        device: Device of the training.
        origin: Record of what the weights began as; empty for random weights.
    """

    recipe: Recipe
    text: TrainingText
    denoiser: Denoiser
    mixture: Mixture
    device: torch.device
    origin: Mapping[str, Any] = field(default_factory=dict)

    def checkpoint(self, training: dict[str, Any] | None = None) -> Checkpoint:
        """The model as it is now, with `training` added to the record of its recipe."""
        origin = {"origin": dict(self.origin)} if self.origin else {}
        return Checkpoint(
            self.denoiser,
            self.tokenizer.vocabulary,
            self.noise_schedule,
            self.mixture.hyperschedules,
            self.tokenizer.to_json(),
            {"recipe": self.recipe.to_table(), **origin, **(training or {})},
            self.recipe.network.context,
            self.recipe.network.active,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text."""
        return self.text.tokenizer

    @property
    def train(self) -> TokenStream:
        """Training tokens."""
        return self.text.train

    @property
    def validation(self) -> TokenStream:
        """Tokens that training never uses."""
        return self.text.validation

    @property
    def regime(self) -> Regime:
        """The regime of the first part of the mixture, which is also that of generation."""
        return self.mixture.parts[0].corruption.regime

    @property
    def noise_schedule(self) -> AbstractNoiseSchedule:
        """The noise schedule of all parts."""
        return self.regime.noise_schedule

    def trainer(self) -> Trainer:
        """A trainer of the denoiser, before its first step."""
        recipe = self.recipe
        widths = [plan.window_size for plan in self.mixture.hyperschedules if not plan.settles_together]
        windows = self.text.windows(recipe.data.context, recipe.run.seed, math.lcm(*widths))
        return Trainer(self.denoiser, self.mixture, windows, recipe.optimizer, recipe.run, self.device)


def build_setup(
    recipe: Recipe,
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
    start: Checkpoint | None = None,
    text: Corpora | None = None,
) -> TrainingSetup:
    """Read the text, train the tokenizer and make an untrained model, or take both from a checkpoint.

    Args:
        recipe: The recipe of the run.
        device: Device of the training.
        say: Called with a line for each finished piece of work.
        start: Initial checkpoint, which gives the tokenizer and the weights. Process, parameterization and
            hyperschedules are those of the recipe.
        text: Corpora in place of those that the recipe names.

    Raises:
        ValueError: If the recipe cannot be followed, or does not fit the checkpoint; the message names the option.
    """
    # Build the mixture once before the text is read, so that its errors come before work that may take hours.
    Mixture.of(recipe, recipe.build_process(recipe.data.vocabulary))
    if recipe.network.type == "DiffusionGemma" and shards_networks(device):
        refuse_fsdp(recipe.network.type)
    read = read_training_text(recipe, say, start, text)
    vocabulary = read.tokenizer.vocabulary
    document_end = vocabulary.eos if recipe.network.separate_documents else None
    require(
        document_end is not None or not recipe.network.separate_documents,
        "network.separate_documents",
        "false with a tokenizer that has no token for the end of a document",
        recipe.network.separate_documents,
    )
    torch.manual_seed(recipe.run.seed)
    process = recipe.build_process(vocabulary.num_words)
    network = build_network(recipe.network_config(_rows(process, vocabulary, start)))
    network.checkpoint_activations = recipe.network.checkpoint_activations
    if start is not None:
        _load_weights(network, start)
    if recipe.lora.rank:
        add_adapters(network, recipe.lora)
    network.to(device)
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    trained = sum(size for size, moves in sizes if moves)
    some = "" if all(moves for _, moves in sizes) else f", of which {trained:,} are trained"
    say(f"network: {sum(size for size, _ in sizes):,} parameters{some}")
    denoiser = Denoiser(network, process, recipe.build_parameterization())
    origin = {} if start is None else origin_of(start)
    return TrainingSetup(recipe, read, denoiser, Mixture.of(recipe, process, document_end), device, origin)


def _rows(process: AbstractNoiseProcess, vocabulary: Vocabulary, start: Checkpoint | None) -> int:
    """Rows of the network: one for each word and one for the mask, which a network without masks may lack."""
    if start is not None and not process.makes_masks:
        return start.network.config.vocab_size
    return vocabulary.size


def _load_weights(network: AbstractNetwork, start: Checkpoint) -> None:
    """Copy the weights of a checkpoint of the same shape; options that no weight depends on may differ."""
    want, has = network.config, start.network.config.to_dict()
    free = _FREE if want.timestep_embedding else _FREE | {"cond_dim"}
    for option, value in want.to_dict().items():
        if option not in free and has.get(option) != value:
            raise ValueError(
                f"the checkpoint to begin with has {option} {has.get(option)}, the recipe {value}: "
                "change the recipe's [network] or [data]."
            )
    network.load_state_dict(start.network.state_dict())
