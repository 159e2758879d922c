"""A run before its first step: what a recipe makes of its text, from the tokenizer to the trainer.

recipe -> documents -> tokenizer -> streams -> denoiser and mixture -> trainer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.data import Tokenizer, TokenStream
from hdlm.denoiser import Denoiser
from hdlm.network import DDiT, DDiTConfig
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.parameterization import AbstractParameterization, LogScore, Mean, Shifted
from hdlm.process import AbstractNoiseProcess, EpsilonHybrid, GammaHybrid
from hdlm.training.loop import Trainer
from hdlm.training.mixture import Mixture
from hdlm.training.recipe import Recipe
from hdlm.training.text import Corpora, TrainingText, read_text

__all__ = ["Run", "prepare"]

_FREE = frozenset({"dropout", "max_length"})
"""Options of a network that no weight depends on; nor does `cond_dim` in one that is told nothing."""


@final
@dataclass(frozen=True)
class Run:
    """Everything that is ready before the first step.

    Attributes:
        recipe: What was asked for.
        text: What is learnt from, and what is not.
        denoiser: The model; training changes it in place.
        mixture: Which noise at which step.
        device: Where training happens.
    """

    recipe: Recipe
    text: TrainingText
    denoiser: Denoiser
    mixture: Mixture
    device: torch.device

    def checkpoint(self, training: dict[str, Any] | None = None) -> Checkpoint:
        """The model as it is now.

        Args:
            training: What to say of its training besides the recipe.
        """
        return Checkpoint(
            self.denoiser,
            self.tokenizer.vocabulary,
            self.noise_schedule,
            self.mixture.hyperschedules,
            self.tokenizer.to_json(),
            {"recipe": self.recipe.to_table(), **(training or {})},
            self.recipe.network.context,
            self.recipe.network.active,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """Trained on the training text, or what the recipe names."""
        return self.text.tokenizer

    @property
    def train(self) -> TokenStream:
        """Tokens to learn from."""
        return self.text.train

    @property
    def validation(self) -> TokenStream:
        """Tokens that training never sees."""
        return self.text.validation

    @property
    def noise_schedule(self) -> AbstractNoiseSchedule:
        """How fast noise comes."""
        return self.mixture.parts[0].corruption.noise_schedule

    def trainer(self) -> Trainer:
        """What trains the denoiser, before its first step."""
        recipe = self.recipe
        windows = self.text.windows(recipe.data.context, recipe.run.seed)
        return Trainer(self.denoiser, self.mixture, windows, recipe.optimizer, recipe.run, self.device)


def prepare(
    recipe: Recipe,
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
    start: Checkpoint | None = None,
    text: Corpora | None = None,
) -> Run:
    """Read the text, train the tokenizer and make an untrained model, or take both from a checkpoint.

    Args:
        recipe: What to do.
        device: Where to train.
        say: Told in a line what has been done.
        start: Where to begin: its tokenizer and its weights. What they mean (process, parameterization, hyperschedules)
            is the recipe's to say.
        text: Where the text comes from, if not as the recipe says.

    Raises:
        ValueError: If the recipe cannot be followed, or does not fit the checkpoint; the message names the option.
    """
    words = recipe.data.vocabulary
    # What the mixture refuses it refuses here, before text is read, which may take hours.
    Mixture.of(recipe, _process(recipe, words), words)
    read = read_text(recipe, say, start, text)
    torch.manual_seed(recipe.run.seed)
    network = _network(recipe, read.tokenizer)
    if start is not None:
        _take_over(network, start)
    network.to(device)
    process = _process(recipe, read.tokenizer.vocabulary.num_words)
    say(f"network: {sum(weight.numel() for weight in network.parameters()):,} parameters")
    return Run(
        recipe,
        read,
        Denoiser(network, process, _parameterization(recipe)),
        Mixture.of(recipe, process, read.tokenizer.vocabulary.eos),
        device,
    )


def _process(recipe: Recipe, num_words: int) -> AbstractNoiseProcess:
    settings = recipe.process
    family = EpsilonHybrid if settings.type == "EpsilonHybrid" else GammaHybrid
    return family(num_words, settings.strength)


def _parameterization(recipe: Recipe) -> AbstractParameterization:
    """Score entropy trains log scores, cross-entropy logits of the clean token."""
    shape = recipe.network
    inner: AbstractParameterization = Mean("sigma" if shape.told_noise else "none")
    if recipe.objective.type == "ScoreEntropy":
        inner = LogScore(shape.scale_by_sigma, recipe.process.gamma if shape.blend else None)
    return Shifted(inner) if shape.shifted else inner


def _network(recipe: Recipe, tokenizer: Tokenizer) -> DDiT:
    shape = recipe.network
    network = DDiT(
        DDiTConfig(
            vocab_size=tokenizer.vocabulary.size,
            hidden_size=shape.hidden_size,
            num_blocks=shape.num_blocks,
            num_heads=shape.num_heads,
            cond_dim=shape.cond_dim,
            dropout=shape.dropout,
            timestep_embedding=shape.told_noise,
            condition_blocks=shape.told_noise,
            max_length=recipe.data.context,
        )
    )
    network.checkpoint_activations = shape.checkpoint_activations
    return network


def _take_over(network: DDiT, start: Checkpoint) -> None:
    """Give a network the weights of a checkpoint of the same shape; what no weight depends on may differ."""
    want, have = network.config, start.network.config
    free = _FREE if want.timestep_embedding else _FREE | {"cond_dim"}
    for option, value in want.to_dict().items():
        if option not in free and getattr(have, option) != value:
            raise ValueError(
                f"the checkpoint to begin with has {option} {getattr(have, option)}, the recipe {value}: "
                "change the recipe's [network] or [data]."
            )
    network.load_state_dict(start.network.state_dict())
