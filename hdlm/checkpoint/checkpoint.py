"""A model with its description, and the verbs that use it.

The verbs (`generate`, `infill`, `likelihood`) are implemented in layers above this one, in `hdlm.generation` and
`hdlm.evaluate`, which take a checkpoint as their argument. A verb imports its implementation by name when it is
called; `VERBS` lists them all. So the layers below stay free of those above, and loading a model imports neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from hdlm.attention import Active, Context, check_views
from hdlm.checkpoint.pieces import describe
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import AbstractNetwork
from hdlm.noise_schedule import AbstractNoiseSchedule, Linear
from hdlm.regime import Regime
from hdlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hdlm.data.tokenizer import Tokenizer
    from hdlm.evaluation.likelihood.result import LikelihoodResult
    from hdlm.generation.text import Passages
    from hdlm.view.page import ReplayPage

__all__ = ["FORMAT", "MODEL_TYPE", "VERBS", "Checkpoint"]

FORMAT = 1
"""Version of the layout of `config.json`."""

MODEL_TYPE = "hdlm"
"""The `model_type` of these models in `transformers`: see `hdlm.integrations.transformers`."""

VERBS: Mapping[str, str] = {
    "correct": "hdlm.generation.verbs",
    "generate": "hdlm.generation.verbs",
    "infill": "hdlm.generation.verbs",
    "likelihood": "hdlm.measurements",
    "replay": "hdlm.view.page",
}
"""The module that implements each verb, as a function of the same name whose first argument is the checkpoint."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """A model and its description.

    Attributes:
        denoiser: Network, process and parameterization; the network is one of `hdlm.network`.
        vocabulary: Meaning of its tokens.
        noise_schedule: Noise as a function of time in training.
        hyperschedules: Hyperschedules of its training, the best one for generation first.
        tokenizer_json: Text of a `tokenizer.json`, or None for a model without a tokenizer.
        training: Record of its training: plain values for people to read.
        context: Attention between settled positions in training; see `hdlm.attention`.
        active: Attention between active positions in training.
    """

    denoiser: Denoiser
    vocabulary: Vocabulary
    noise_schedule: AbstractNoiseSchedule = field(default_factory=Linear)
    hyperschedules: tuple[AbstractHyperschedule, ...] = ()
    tokenizer_json: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    context: Context = "block_causal"
    active: Active = "full"

    def __post_init__(self) -> None:
        words, process = self.vocabulary.num_words, self.denoiser.process
        rows = self.network.config.vocab_size
        fits = (words + 1,) if process.makes_masks else (words, words + 1)
        if process.num_words != words or rows not in fits:
            raise ValueError(
                f"the vocabulary does not match: it has {words} words, the process {process.num_words}, and the "
                f"network {rows} rows (one for each word, and one for the mask, if there is one)."
            )
        check_views(self.context, self.active)

    @property
    def network(self) -> AbstractNetwork:
        """The network inside the denoiser."""
        backbone = self.denoiser.backbone
        if not isinstance(backbone, AbstractNetwork):
            raise ValueError(f"a checkpoint holds a network of hdlm; got {type(backbone).__name__}.")
        return backbone

    @property
    def length(self) -> int:
        """Number of positions that the network is meant for."""
        return self.network.config.max_length

    def regime(self, hyperschedule: AbstractHyperschedule | None = None) -> Regime:
        """The regime of generation and evaluation: the noise schedule and the attention masks of training.

        Args:
            hyperschedule: Hyperschedule of the regime; by default the first of the checkpoint.

        Raises:
            ValueError: If the checkpoint has no hyperschedule, and none is given.
        """
        if hyperschedule is None and not self.hyperschedules:
            raise ValueError(
                "The checkpoint has no hyperschedule: give one, such as `hdlm.flat(length, steps)`."
            )
        chosen = self.hyperschedules[0] if hyperschedule is None else hyperschedule
        return Regime(chosen, self.noise_schedule, self.context, self.active)

    @property
    def device(self) -> torch.device:
        """The device of the network, where all work with the model is done."""
        return self.denoiser.device

    def to(self, device: torch.device | str) -> Checkpoint:
        """Move the network to a device.

        Returns:
            This checkpoint.
        """
        self.denoiser.to(device)
        return self

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; it is read from `tokenizer_json` at its first use.

        Raises:
            ValueError: If there is no tokenizer, or one of another size.
        """
        if self.tokenizer_json is None:
            raise ValueError(
                "The checkpoint has no tokenizer, so its ids cannot be turned into text. Put the tokenizer.json it was "
                "trained with into its folder, or give one: hdlm.load(..., tokenizer=FILE, FOLDER or name)."
            )
        from hdlm.data.tokenizer import Tokenizer

        words = self.vocabulary.num_words
        return Tokenizer.from_json(self.tokenizer_json, "the checkpoint's tokenizer.json", words)

    def generate(
        self,
        prompt: str = "",
        *,
        num: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        stop: Sequence[str] = (),
        stop_at_end: bool = False,
        stream: Callable[[int, str], None] | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Passages:
        """Generate text that continues a prompt.

        Args:
            prompt: Text to begin with.
            num: Number of passages, at least 1.
            seed: Seed of all random numbers; passage `k` is a function of the seed and `k`.
            batch_size: Number of passages that are generated at a time; it changes no passage.
            stop: Strings that end a passage; it ends before the first of them.
            stop_at_end: Whether a passage ends at the token that ends a text.
            stream: Called with the number of a passage and the next piece of its text, as soon as that is certain.
            progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
            **settings: Fields of `hdlm.Settings`: `algorithm`, `steps`, `temperature`, `length` and so on. Others have
                the default of `Settings` or of the checkpoint.

        Returns:
            The passages; each has a `text`. Their `replay()` shows how they were generated.

        Raises:
            ValueError: If a setting is unknown or out of range, the prompt does not fit, or it has gaps: see `infill`.
        """
        passages: Passages = _implementation("generate")(
            self,
            prompt,
            num=num,
            seed=seed,
            batch_size=batch_size,
            stop=stop,
            stop_at_end=stop_at_end,
            stream=stream,
            progress=progress,
            **settings,
        )
        return passages

    def infill(
        self,
        text: str,
        *,
        num: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Passages:
        """Fill in the gaps of a text.

        Args:
            text: The text. `[MASK]` is a gap of one token, `[MASK:5]` one of five.
            num: Number of passages, at least 1.
            seed: Seed of all random numbers.
            batch_size: Number of passages that are generated at a time; it changes no passage.
            progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
            **settings: Fields of `hdlm.Settings`, as in `generate`.

        Returns:
            The whole text, once for each passage. Their `replay()` shows how they were generated.

        Raises:
            ValueError: If there is no gap, the text does not fit, or a setting is unknown or out of range.
        """
        passages: Passages = _implementation("infill")(
            self, text, num=num, seed=seed, batch_size=batch_size, progress=progress, **settings
        )
        return passages

    def correct(
        self,
        text: str,
        *,
        noise: float | None = None,
        num: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Passages:
        """Correct a finished text: its words are a draft, and the sampler replaces those that do not fit.

        Algorithms that correct are `doubt`, `acs`, `gibbs` and, by masking words again, `remdm`. The first token stays.

        Args:
            text: The text, without gaps.
            noise: Noise fraction in (0, 1] at which the draft begins. By default the smallest one at which the process
                of the model has five wrong words in a hundred; 0.5 if it never or always has.
            num: Number of passages, at least 1.
            seed: Seed of all random numbers.
            batch_size: Number of passages that are corrected at a time; it changes no passage.
            progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
            **settings: Fields of `hdlm.Settings`, as in `generate`.

        Returns:
            The whole text, once for each passage. Their `replay()` shows how they were corrected.

        Raises:
            ValueError: If the text has gaps or does not fit, or a setting is unknown or out of range.
        """
        passages: Passages = _implementation("correct")(
            self,
            text,
            noise=noise,
            num=num,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            **settings,
        )
        return passages

    def replay(
        self,
        prompt: str = "",
        *,
        num: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        stop: Sequence[str] = (),
        stop_at_end: bool = False,
        alternatives: int = 5,
        noise: float | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> ReplayPage:
        """Generate text with a trace, and return a page that plays the generation; a notebook shows it.

        The text is that of `generate`; for a text with gaps, of `infill`; with a `noise`, of `correct`.

        Args:
            prompt: Text to begin with, a text with gaps, or a text to correct.
            num: Number of passages, at least 1.
            seed: Seed of all random numbers.
            batch_size: Number of passages that are generated at a time; it changes no passage.
            stop: Strings that end a passage; it ends before the first of them.
            stop_at_end: Whether a passage ends at the token that ends a text.
            alternatives: Number of likeliest words that are kept for each change.
            noise: Noise fraction at which a text to correct begins; None if the prompt is not corrected.
            progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
            **settings: Fields of `hdlm.Settings`, as in `generate`.

        Returns:
            The page. `save(path)` writes it, and `traces` are the recorded traces.

        Raises:
            ValueError: If a setting is unknown or out of range, or the prompt does not fit.
        """
        page: ReplayPage = _implementation("replay")(
            self,
            prompt,
            num=num,
            seed=seed,
            batch_size=batch_size,
            stop=stop,
            stop_at_end=stop_at_end,
            alternatives=alternatives,
            noise=noise,
            progress=progress,
            **settings,
        )
        return page

    def likelihood(
        self,
        text: object,
        *,
        output: str | Path | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> LikelihoodResult:
        """Measure how well the model predicts a text.

        Args:
            text: A file, a folder, a glob or the name of a data set; documents, as a list of strings; or a corpus.
            output: Folder for `results.json`, report and picture; a measurement that was interrupted is resumed there.
            progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
            **options: Fields of `hdlm.evaluate.LikelihoodOptions`: `replicates`, `hyperschedule`, `length`, `stride`
                and so on. The checkpoint has its noise schedule, its context and its hyperschedules.

        Returns:
            The bound on `-log p` of the text, with `bits_per_byte`, `perplexity` and their standard errors.

        Raises:
            ValueError: If the text cannot be used, or an option is unknown, out of range or does not fit the model.
        """
        result: LikelihoodResult = _implementation("likelihood")(
            self, text, output=output, progress=progress, **options
        )
        return result

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint into a folder, from which `hdlm.load` reads it.

        Args:
            folder: The folder; it is made if it does not exist.
        """
        from hdlm.checkpoint.format import save_checkpoint

        save_checkpoint(Path(folder), self)

    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {
            "format": FORMAT,
            "model_type": MODEL_TYPE,
            "network": self.network.config.to_dict(),
            "vocabulary": dataclasses.asdict(self.vocabulary),
            "process": describe(self.denoiser.process),
            "parameterization": describe(self.denoiser.parameterization),
            "noise_schedule": describe(self.noise_schedule),
            "hyperschedules": [describe(hyperschedule) for hyperschedule in self.hyperschedules],
            "context": self.context,
            "active": self.active,
            "training": dict(self.training),
        }


def _implementation(verb: str) -> Callable[..., Any]:
    """The function of an upper layer that implements a verb."""
    function: Callable[..., Any] = getattr(import_module(VERBS[verb]), verb)
    return function
