"""The models of a server, and the algorithms that each supports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hdlm.checkpoint import Checkpoint
from hdlm.generation.settings import Settings, planned
from hdlm.sampling import ALGORITHMS, RULES, Prompt, sample
from hdlm.sampling.algorithms import SPECULATIVE, corrects
from hdlm.strict_config import nearest

__all__ = ["ServedModel", "read_chat_template"]

_NAMES = (*ALGORITHMS, SPECULATIVE)


@final
@dataclass(frozen=True)
class ServedModel:
    """A model under its name.

    Attributes:
        name: Name in requests.
        checkpoint: The model itself.
        chat_template: Jinja template that turns messages into a prompt; None for a model without one.
        created: Time of its loading, in seconds since 1970.
    """

    name: str
    checkpoint: Checkpoint
    chat_template: str | None = None
    created: int = 0

    @cached_property
    def unsupported(self) -> Mapping[str, str]:
        """The algorithms that this model does not support, with the reason.

        Each algorithm generates two tokens. Algorithms refuse a process or a network when they are first used.
        """
        reasons = {}
        for name in _NAMES:
            try:
                self._try(name)
            except ValueError as error:
                reasons[name] = str(error)
        return reasons

    @property
    def supported(self) -> list[str]:
        """The algorithms of `ALGORITHMS`, and speculative sampling, if this model supports them."""
        return [name for name in _NAMES if name not in self.unsupported]

    @property
    def correcting(self) -> list[str]:
        """The supported algorithms that can correct a finished text."""
        return [name for name in self.supported if corrects(name, self.checkpoint.denoiser.process)]

    def check_correction(self, name: str) -> None:
        """Refuse an algorithm that this model supports, but that cannot correct a finished text.

        Raises:
            ValueError: If the algorithm replaces no word, or the model has never seen a wrong word.
        """
        process = self.checkpoint.denoiser.process
        if corrects(name, process):
            return
        known = ", ".join(self.correcting) or "none"
        if not process.only_masks:
            raise ValueError(
                f"`algorithm` is {name!r}, which replaces no word of a finished text. "
                f"Algorithms that replace words: {known}."
            )
        raise ValueError(
            f"`algorithm` is {name!r}, but the noise of the model {self.name!r} makes masks only, so the model has "
            "never seen a wrong word and cannot find one. Use a model whose noise replaces words, such as "
            f"kjv-spelling-2m, or an algorithm that does not need such noise: {known}."
        )

    def check_algorithm(self, name: str) -> None:
        """Refuse an algorithm; the rules of other tools (`RULES`) are settings of the algorithm confidence.

        Raises:
            ValueError: If it is unknown, or this model does not support it.
        """
        builder = "confidence" if name in RULES else name
        if builder in self.supported:
            return
        known = ", ".join(self.supported)
        if builder in self.unsupported:
            raise ValueError(f"{self.unsupported[builder]} Algorithms that work: {known}.")
        meant = nearest(name, [*self.supported, *RULES])
        raise ValueError(
            f"Unknown algorithm {name!r}; did you mean {meant!r}? Known: {known}, and the rules {', '.join(RULES)}."
        )

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for the messages of a chat.

        Raises:
            ValueError: If the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError(
                f"The model {self.name!r} has no chat template, so it does not take messages: send a `prompt` to "
                "/v1/completions."
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            text = environment.from_string(self.chat_template).render(
                messages=messages, add_generation_prompt=True, bos_token="", eos_token=""
            )
        except TemplateError as error:
            raise ValueError(f"The chat template of the model refuses the messages: {error}") from error
        return text

    def _try(self, name: str) -> None:
        checkpoint = self.checkpoint
        length = min(3, checkpoint.length)
        settings = Settings(name) if name == SPECULATIVE else Settings(name, hyperschedule="flat", steps=1)
        regime = planned(checkpoint, settings, length, infilling=False)
        step = settings.step(checkpoint, regime.hyperschedule)
        prompt = Prompt.prefix([0], length) if length > 1 else None
        with torch.no_grad():
            sample(checkpoint.denoiser, regime, step, prompt=prompt)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a checkpoint folder: `chat_template.jinja`, or the one in `tokenizer_config.json`."""
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    if not config.is_file():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    return found if isinstance(found, str) else None
