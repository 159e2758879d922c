"""hdlm models as `transformers` models: `AutoModel.from_pretrained("runs/first")`.

A folder written here is a checkpoint folder (`hdlm.checkpoint`) and a `transformers` folder at once: one `config.json`
and one `model.safetensors` for both. Importing this module registers both classes with `AutoConfig`, `AutoModel` and
`AutoModelForMaskedLM`; nothing else in `hdlm` imports `transformers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.generic import ModelOutput

from hdlm.atomic import replacing
from hdlm.checkpoint import FORMAT, MODEL_TYPE, Checkpoint, assemble
from hdlm.denoiser import Denoiser, ForwardContext
from hdlm.generation import Settings, complete, planned
from hdlm.network import build_network, read_network_config
from hdlm.sampling import Execution, Frame, Prompt
from hdlm.sharing.push import tokenizer_files

__all__ = ["DenoisingOutput", "HDLMConfig", "HDLMForDiffusionLM"]

_TABLES = ("network", "vocabulary", "process", "parameterization", "noise_schedule", "hyperschedules")
_SETTINGS = tuple(option.name for option in fields(Settings))
_PREFIX = "model."
_IGNORE = -100
"""Label of a position that the loss ignores, as everywhere in `transformers`."""


@final
class HDLMConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The content of a checkpoint's `config.json` (`Checkpoint.config`), as a `transformers` config.

    Args:
        network: Sizes and switches of the network; see `hdlm.network.DDiTConfig` and `DecoderConfig`.
        vocabulary: Meaning of its tokens.
        process: The noise process.
        parameterization: Meaning of its outputs.
        noise_schedule: Noise as a function of time in training.
        hyperschedules: Hyperschedules of its training, the best one for generation first.
        context: Attention between settled positions.
        active: Attention between active positions.
        training: Record of its training.
        format: Version of this layout.
        **kwargs: Options that `transformers` keeps in every config.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        network: Mapping[str, Any] | None = None,
        vocabulary: Mapping[str, Any] | None = None,
        process: Mapping[str, Any] | None = None,
        parameterization: Mapping[str, Any] | None = None,
        noise_schedule: Mapping[str, Any] | None = None,
        hyperschedules: list[dict[str, Any]] | None = None,
        context: str = "block_causal",
        active: str = "full",
        training: Mapping[str, Any] | None = None,
        format: int = FORMAT,
        **kwargs: Any,
    ) -> None:
        self.network = None if network is None else dict(network)
        self.vocabulary = None if vocabulary is None else dict(vocabulary)
        self.process = None if process is None else dict(process)
        self.parameterization = None if parameterization is None else dict(parameterization)
        self.noise_schedule = dict(noise_schedule or {"type": "Linear"})
        self.hyperschedules = list(hyperschedules or [])
        self.context = context
        self.active = active
        self.training = dict(training or {})
        self.format = format
        super().__init__(**kwargs)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> HDLMConfig:
        """The config of a checkpoint."""
        return cls(**{name: value for name, value in checkpoint.config().items() if name != "model_type"})

    def document(self) -> dict[str, Any]:
        """The content of `Checkpoint.config`.

        Raises:
            ValueError: If this config does not describe a model.
        """
        tables = {name: getattr(self, name) for name in _TABLES}
        missing = [name for name, table in tables.items() if table is None]
        if missing:
            raise ValueError(
                f"This HDLMConfig does not describe a model, because it lacks {', '.join(missing)}: use that of a "
                "checkpoint, HDLMConfig.of(checkpoint), or AutoConfig.from_pretrained of a folder."
            )
        return tables | {name: getattr(self, name) for name in ("context", "active", "training", "format")}


@final
@dataclass
class DenoisingOutput(ModelOutput):
    """The result of `HDLMForDiffusionLM`.

    Attributes:
        loss: Mean cross-entropy of the labels, if there are any.
        logits: `log p(x_0 | x_t)` at every position; minus infinity at the mask.
    """

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "b q v"] | None = None


@final
class HDLMForDiffusionLM(PreTrainedModel):
    """A denoiser as a `transformers` model.

    Args:
        config: The model without its weights, which are then drawn at random.

    Attributes:
        model: Network of the model.
        tokenizer: Text of a `tokenizer.json` that is saved with the weights, or None. It is None for a model that was
            read from files: `AutoTokenizer` reads it.
    """

    config_class = HDLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False

    def __init__(self, config: HDLMConfig) -> None:
        super().__init__(config)
        self.model = build_network(read_network_config(config.document()["network"]))
        self.tokenizer: str | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> HDLMForDiffusionLM:
        """The model of a checkpoint; it shares the weights."""
        with torch.device("meta"):
            model = cls(HDLMConfig.of(checkpoint))
        model.model = checkpoint.network
        model.tokenizer = checkpoint.tokenizer_json
        model.training = checkpoint.network.training
        return model

    @property
    def checkpoint(self) -> Checkpoint:
        """This model as a checkpoint of `hdlm`; it shares the weights."""
        return assemble(self.config.document(), self.model, self.tokenizer)

    def forward(
        self,
        input_ids: Int[Tensor, "b q"],
        noise: Float[Tensor, "#b #q"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#b q"] | None = None,
        labels: Int[Tensor, "b q"] | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> DenoisingOutput | tuple[Tensor, ...]:
        """`log p(x_0 | x_t)` at every position.

        Args:
            input_ids: Ids of noisy tokens.
            noise: Noise fraction of each position, in [0, 1], 0 if the token is known; it may be left out if the
                network does not depend on it.
            attention_mask: `[b, q]`, nonzero if a token may be attended to at all; or `[b, q, q]`, nonzero if a query
                (row) may attend to a key.
            position_ids: Position of each token; by default `0 .. q-1`.
            labels: The clean tokens, -100 at positions that the loss ignores.
            return_dict: False for a tuple.
            **ignored: Arguments that pipelines pass to any model, such as `token_type_ids`.

        Raises:
            ValueError: If the network needs the noise and it is missing, a position is beyond the context, or a label
                is not a word.
        """
        pieces = self.checkpoint.denoiser
        _check_positions(input_ids, position_ids, self.model.config.max_length)
        if labels is not None:
            _check_labels(labels, pieces.process.num_words)
        if noise is None:
            noise = self._default_noise(pieces, input_ids)
        noise = noise.expand(input_ids.shape)
        seen = None if attention_mask is None else _visible(attention_mask, input_ids)
        logits = pieces(input_ids, noise, ForwardContext(position_ids, seen))
        loss = None
        if labels is not None:
            loss = F.nll_loss(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORE)
        output = DenoisingOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def _default_noise(self, denoiser: Denoiser, tokens: Tensor) -> Tensor:
        """Noise for a network that does not depend on it."""
        outputs = self.config.document()["parameterization"]
        while isinstance(outputs.get("inner"), Mapping):
            outputs = outputs["inner"]
        if outputs.get("conditioning") not in ("none", "zero"):
            raise ValueError(
                "This model needs the noise of each position: pass `noise`, fractions in [0, 1] of the shape "
                f"{list(tokens.shape)}, 0 where the token is known."
            )
        return torch.zeros(tokens.shape, device=tokens.device)

    @torch.no_grad()
    def generate(
        self,
        inputs: Int[Tensor, "b p"] | None = None,
        *,
        input_ids: Int[Tensor, "b p"] | None = None,
        attention_mask: Int[Tensor, "b p"] | None = None,
        max_length: int | None = None,
        num_return_sequences: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
        watch: Callable[[Frame], None] | None = None,
        **settings: Any,
    ) -> Int[Tensor, "n l"]:
        """Generate: a prompt is continued, masks in it are filled in, and without a prompt the canvas begins empty.

        Args:
            inputs: Prompts of one length; the mask's id marks positions to fill in.
            input_ids: Another name of `inputs`, so that `generate(**tokenizer(text))` works.
            attention_mask: Must be all ones: prompts of different lengths need separate calls.
            max_length: Another name of `length`: positions on the canvas, the prompt included.
            num_return_sequences: Number of sequences for each prompt.
            batch_size: Number of sequences at a time; it changes no sequence.
            seed: Seed of all random numbers.
            watch: Called after every generation step.
            **settings: `algorithm="acs"`, `eta`, `hyperschedule`, `width`, `steps`, `length`, `temperature`,
                `top_k`, `top_p`, `min_p`, `repetition_penalty`, `guidance`; see `hdlm.generation.Settings`.

        Raises:
            ValueError: If an option is unknown or out of range, or the prompt does not fit the canvas.
        """
        checkpoint = self.checkpoint
        chosen = _settings(settings, max_length)
        prompts = inputs if inputs is not None else input_ids
        if prompts is None:
            prompts = torch.tensor([checkpoint.vocabulary.text_start], dtype=torch.long, device=self.device)
        if attention_mask is not None and not attention_mask.bool().all():
            raise ValueError("Padded prompts are not supported: give prompts of one length, without padding.")
        gaps = prompts == checkpoint.vocabulary.mask_id
        length = chosen.length
        if length is None:
            length = prompts.shape[1] if gaps.any() else checkpoint.length
        regime = planned(checkpoint, chosen, length, infilling=bool(gaps.any()), given=prompts.shape[1])
        given = _canvas(prompts, gaps, length, num_return_sequences)
        written = complete(
            checkpoint,
            given,
            regime,
            chosen,
            num=len(given.tokens),
            seed=seed,
            execution=Execution(batch_size, device=self.device),
            watch=watch,
        )
        return written.tokens

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> Any:
        """Read a folder or a repository; see `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: If a tensor is missing, unexpected or of another shape: no tensor is drawn at random.
        """
        reported = options.pop("output_loading_info", False)
        # Tensors of another shape are reported like missing and unexpected ones, and refused below together with them.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        answer: Any = super().from_pretrained(name, *arguments, **options)
        loaded, report = answer
        wrong = {
            what.replace("_", " "): sorted(map(str, report[what]))
            for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if report[what]
        }
        if wrong:
            listed = "; ".join(f"{what} {', '.join(names)}" for what, names in wrong.items())
            raise ValueError(f"the weights at {name} do not fit the network of its config: {listed}.")
        rotary = loaded.model.rotary_emb.inv_freq
        # Half precision would round frequencies, which changes far positions: they are computed, not read.
        loaded.model.rotary_emb = loaded.model.new_rotary().to(rotary.device)
        return (loaded, report) if reported else loaded

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write a folder that `transformers` and `hdlm.load` both read; see `PreTrainedModel.save_pretrained`."""
        state = self.state_dict() if state_dict is None else state_dict
        bare = {name.removeprefix(_PREFIX): value for name, value in state.items()}
        super().save_pretrained(save_directory, state_dict=bare, **options)
        if self.tokenizer is not None:
            for file, content in tokenizer_files(self.checkpoint).items():
                with replacing(Path(save_directory) / file) as aside:
                    aside.write_bytes(content)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: the network draws its own weights when it is made."""


def _settings(options: Mapping[str, Any], max_length: int | None) -> Settings:
    """The settings in the options of `generate`."""
    unknown = sorted(options.keys() - set(_SETTINGS))
    if unknown:
        raise ValueError(f"generate() has no option {', '.join(unknown)}; known: {', '.join(_SETTINGS)}.")
    if max_length is None:
        return Settings(**options)
    if options.get("length") not in (None, max_length):
        raise ValueError(
            f"`max_length` and `length` are two names of one option; got {max_length} and {options['length']}."
        )
    return Settings(**{**options, "length": max_length})


def _canvas(prompts: Tensor, gaps: Tensor, length: int, copies: int) -> Prompt:
    """Prompts on canvases of a length, each as many times as needed."""
    if copies < 1:
        raise ValueError(f"`num_return_sequences` must be at least 1; got {copies}.")
    room = length - prompts.shape[1]
    if room < 0 or (room == 0 and not gaps.any()):
        raise ValueError(
            f"The prompt has {prompts.shape[1]} tokens and the canvas {length} positions: nothing is left to write. "
            "Shorten the prompt or lengthen the canvas."
        )
    tokens = F.pad(prompts.masked_fill(gaps, 0), (0, room))
    fixed = F.pad(~gaps, (0, room))
    return Prompt(tokens.repeat_interleave(copies, 0), fixed.repeat_interleave(copies, 0))


def _check_positions(tokens: Tensor, positions: Tensor | None, context: int) -> None:
    """Refuse positions outside the context of the network."""
    if positions is None:
        if tokens.shape[1] > context:
            raise ValueError(
                f"`input_ids` has {tokens.shape[1]} positions, but the context of this model has {context}: give at "
                f"most {context} tokens."
            )
        return
    outside = (positions < 0) | (positions >= context)
    if outside.any():
        raise ValueError(
            f"`position_ids` holds {int(positions[outside][0])}, but the context of this model has the positions 0 to "
            f"{context - 1}."
        )


def _check_labels(labels: Tensor, num_words: int) -> None:
    """Refuse labels that have no probability."""
    outside = labels[((labels < 0) | (labels >= num_words)) & (labels != _IGNORE)]
    if outside.numel():
        label = int(outside[0])
        what = "is the mask" if label == num_words else "is not a word of this model"
        raise ValueError(
            f"`labels` holds {label}, which {what}: labels are the clean tokens, 0 to {num_words - 1}, and {_IGNORE} "
            "where the loss is not wanted."
        )


def _visible(mask: Tensor, tokens: Tensor) -> Bool[Tensor, "#b q q"]:
    """An attention mask in the form of `hdlm`: the keys that each query may attend to."""
    length = tokens.shape[1]
    if mask.ndim == 2 and mask.shape == tokens.shape:
        return mask.bool()[:, None].expand(-1, length, -1)
    if mask.ndim == 3 and mask.shape[1:] == (length, length):
        return mask.bool()
    raise ValueError(
        f"`attention_mask` must have the shape {list(tokens.shape)} (tokens) or [.., {length}, {length}] (queries, "
        f"keys); got {list(mask.shape)}."
    )


AutoConfig.register(HDLMConfig.model_type, HDLMConfig, exist_ok=True)
AutoModel.register(HDLMConfig, HDLMForDiffusionLM, exist_ok=True)
AutoModelForMaskedLM.register(HDLMConfig, HDLMForDiffusionLM, exist_ok=True)
