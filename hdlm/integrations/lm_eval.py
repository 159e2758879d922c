"""An hdlm model as a model of `lm_eval`, the language model evaluation harness.

    import lm_eval
    from hdlm.integrations.lm_eval import HDLM

    lm_eval.simple_evaluate(model=HDLM(checkpoint, replicates=32), tasks=["tasks/mine.yaml"])

The answers to its requests, with `bos` (or the token that ends a document, if there is no `bos`) before every text:

    loglikelihood          minus a bound on `-log p(continuation | context)`, the mean of k replicates: exact for
                           autoregression, otherwise rather too low than too high; and whether the model writes the
                           continuation if it always chooses the likeliest word, from left to right
                           (`Likelihood.greedy`)
    loglikelihood_rolling  the same for a whole text, every token in one window
    generate_until         what the sampler writes after the context, on a canvas as long as the model's context, up to
                           the end of the document, a stop string, or `max_gen_toks`, after which the network is not
                           called. Unless a task samples, every draw takes the likeliest word (the order of the
                           positions stays random)

A context that is too long is cut on its left. Access to the class `HDLM` imports `lm_eval` and registers the name
"hdlm" there; `HarnessModel` gives the same answers without `lm_eval`.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, final

import torch

from hdlm import hub
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.likelihood.defaults import bound_of, plan_of
from hdlm.evaluation.likelihood.estimator import Likelihood
from hdlm.evaluation.likelihood.result import BoundName
from hdlm.evaluation.likelihood.windows import Window, split_text
from hdlm.evaluation.records.protocol import describe_piece
from hdlm.generation import Settings, complete, planned
from hdlm.regime import Regime
from hdlm.sampling import Execution, Prompt

__all__ = ["HarnessModel", "Watch"]

Watch = Callable[[str, int, int], None]
"""Called with the kind of work, how much of it is done, and how much there is."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_DEFAULT_LENGTH = 256
"""Tokens to generate if a task does not say, as elsewhere in `lm_eval`."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_OPTIONS = {"until", "do_sample", *_LENGTHS, *_SAMPLING}


def _no_watch(what: str, done: int, total: int) -> None:
    """Ignore progress."""


@final
class HarnessModel:
    """A model that answers the requests of `lm_eval`, without `lm_eval`.

    Args:
        checkpoint: The model, with its tokenizer.
        bound: The bound to measure; by default the paper's if noise ends in masks, otherwise that of the process.
        regime: Regime of the bound; by default that of the first hyperschedule of the checkpoint.
        replicates: Number of estimates of each value; more are more accurate, and slower.
        settings: Settings of generation that a task does not set.
        batch_size: Windows or canvases in a pass.
        seed: Seed of all random numbers.
        device: The device of the model; no other is accepted.
        watch: Called with the progress.

    Raises:
        ValueError: If the checkpoint has no tokenizer, or an argument is out of range.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        bound: BoundName | None = None,
        regime: Regime | None = None,
        replicates: int = 32,
        settings: Settings | None = None,
        batch_size: int = 16,
        seed: int = 0,
        device: torch.device | str | None = None,
        watch: Watch = _no_watch,
    ) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._checkpoint, self._watch = checkpoint, watch
        self._settings = Settings() if settings is None else settings
        self._replicates, self._batch_size = replicates, batch_size
        self.measure = Likelihood(
            checkpoint.denoiser,
            checkpoint.regime(plan_of(checkpoint)) if regime is None else regime,
            bound=bound_of(checkpoint.denoiser.process) if bound is None else bound,
            seed=seed,
            device=device,
        )

    def protocol(self) -> dict[str, Any]:
        """The options of the measurements, for the record."""
        return {
            "bound": self.measure.bound,
            "estimator": self.measure.measured_by,
            "hyperschedule": describe_piece(self.measure.regime.hyperschedule),
            "replicates": self._replicates,
            "seed": self.measure.seed,
            "settings": asdict(self._settings),
        }

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): `log p` of the continuation, and whether it is the greedy one."""
        texts = [self._pair(context, continuation) for context, continuation in pairs]
        windows = [
            split_text([*before, *behind], len(before), self._length, alike=True) for before, behind in texts
        ]
        every = [window for parts in windows for window in parts]
        nats, greedy = self._nats(every), self.measure.greedy(every, batch_size=self._batch_size)
        answers, at = [], 0
        for parts in windows:
            here = slice(at, at + len(parts))
            answers.append((-sum(nats[here], 0.0), all(greedy[here])))
            at += len(parts)
        return answers

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text: `log p` of all its tokens."""
        encoded = [self._tokenizer.encode(text) if text else [] for text in texts]
        windows = [split_text([*self._start, *ids], len(self._start), self._length) for ids in encoded]
        nats, answers, at = self._nats([window for parts in windows for window in parts]), [], 0
        for parts in windows:
            answers.append(-sum(nats[at : at + len(parts)], 0.0))
            at += len(parts)
        return answers

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """For each (context, options): the text that is generated after the context.

        Raises:
            ValueError: If an option is unknown.
        """
        groups: dict[Settings, list[int]] = {}
        for index, (_, options) in enumerate(requests):
            groups.setdefault(self._settings_of(options), []).append(index)
        answers = [""] * len(requests)
        done = 0
        for settings, members in groups.items():
            texts = self._written([requests[index] for index in members], settings)
            for index, text in zip(members, texts, strict=True):
                answers[index] = text
            done += len(members)
            self._watch("writing", done, len(requests))
        return answers

    @property
    def _length(self) -> int:
        return self.measure.regime.length

    @property
    def _start(self) -> list[int]:
        return self._checkpoint.vocabulary.document_start

    def _nats(self, windows: Sequence[Window]) -> list[float]:
        replicates = 1 if self.measure.measured_by == "exact" else self._replicates
        done, total = 0, len(windows) * replicates

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._watch("measuring", done, total)

        nats: list[float] = self.measure.nats(
            windows, replicates, batch_size=self._batch_size, watch=advance
        ).tolist()
        return nats

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and its continuation; a space between them belongs to the continuation."""
        words = context.rstrip()
        continuation = context[len(words) :] + continuation
        before = [*self._start, *(self._tokenizer.encode(words) if words else [])]
        if continuation.startswith(" "):
            return before, self._tokenizer.encode(continuation[1:], "spaced")
        return before, self._tokenizer.encode(continuation, "glued" if words else "start")

    def _settings_of(self, options: Mapping[str, Any]) -> Settings:
        """Settings of a request: greedy unless it samples."""
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise ValueError(
                f"a task asks for {', '.join(unknown)}, which this model does not support; it supports "
                f"{', '.join(sorted(_OPTIONS))}."
            )
        asked = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
        if not options.get("do_sample", asked.get("temperature", 0) > 0) or asked.get("temperature") == 0:
            return replace(self._settings, top_k=1, top_p=None, min_p=None, temperature=1.0)
        return replace(self._settings, **asked)

    def _written(self, requests: Sequence[tuple[str, Mapping[str, Any]]], settings: Settings) -> list[str]:
        """The texts that are generated after some contexts with one group of settings."""
        length = self._checkpoint.length
        prompts, rooms = [], []
        for context, options in requests:
            wanted = next((int(options[name]) for name in _LENGTHS if name in options), _DEFAULT_LENGTH)
            ids = [*self._start, *(self._tokenizer.encode(context.rstrip()) if context.strip() else [])]
            room = min(wanted, max(length - len(ids), length // 2))
            prompts.append(ids[-(length - room) :])
            rooms.append(room)
        rows = [Prompt.prefix(ids, length) for ids in prompts]
        given = Prompt(torch.cat([row.tokens for row in rows]), torch.cat([row.fixed for row in rows]))

        def read(row: int, tokens: list[int]) -> tuple[str, bool]:
            return self._read(tokens, len(prompts[row]), rooms[row], requests[row][1].get("until"))

        done = complete(
            self._checkpoint,
            given,
            planned(self._checkpoint, settings, length, infilling=False),
            settings,
            num=len(rows),
            seed=self.measure.seed,
            execution=Execution(self._batch_size, device=self.measure.device),
            stop=lambda row, tokens: len(tokens) if read(row, tokens.tolist())[1] else None,
        )
        return [read(row, tokens)[0] for row, tokens in enumerate(done.tokens.tolist())]

    def _read(
        self, tokens: list[int], given: int, room: int, until: str | Sequence[str] | None
    ) -> tuple[str, bool]:
        """The generated text up to its end, and whether the text has ended."""
        known = self._checkpoint.vocabulary
        written = tokens[given : given + room]
        ends = [at for at, token in enumerate(written) if token in (known.eos, known.bos)]
        written = written[: ends[0]] if ends else written
        before = self._tokenizer.decode(tokens[:given], keep_special=True)
        whole = self._tokenizer.decode([*tokens[:given], *written], keep_special=True)
        text = whole.removeprefix(before) if whole.startswith(before) else self._tokenizer.decode(written)
        stops = [until] if isinstance(until, str) else until or ()
        at = min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))
        return text[:at], bool(ends) or at < len(text) or len(tokens) >= given + room


def __getattr__(name: str) -> Any:
    if name == "HDLM":
        return _harness_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _harness_class() -> type:
    """The class `HDLM`, made at its first use because its base class is in `lm_eval`.

    Raises:
        ValueError: If `lm_eval` is not installed.
    """
    try:
        importlib.import_module("lm_eval.models")  # registers its own models, which it does not do after ours
        base: Any = importlib.import_module("lm_eval.api.model").LM
        register: Any = importlib.import_module("lm_eval.api.registry").register_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f'the harness cannot be imported ({error}): install it with `pip install "hdlm[harness]"`.'
        ) from error

    @final
    class HDLM(base):  # type: ignore[misc]
        """A model of hdlm for `lm_eval`; see `hdlm.integrations.lm_eval`.

        Args:
            checkpoint: The model, or a source for `hdlm.load`: a folder, a file, a hub id.
            batch_size: Windows or canvases in a pass; None for the default.
            max_batch_size: Ignored, because batch sizes are not searched.
            device: Device of the model; None for that of its weights.
            options: Further arguments of `HarnessModel`.
        """

        def __init__(
            self,
            checkpoint: Checkpoint | str,
            *,
            batch_size: int | str | None = None,
            max_batch_size: int | None = None,
            device: torch.device | str | None = None,
            **options: Any,
        ) -> None:
            super().__init__()
            opened = checkpoint if isinstance(checkpoint, Checkpoint) else hub.load(checkpoint)
            if device is not None:
                opened.denoiser.to(device)
            self._device = next(opened.network.parameters()).device
            if batch_size not in (None, "auto"):
                options["batch_size"] = int(str(batch_size))
            self.examinee = HarnessModel(opened, device=self._device, **options)
            self._tokenizer_name = hashlib.sha256(str(opened.tokenizer_json).encode()).hexdigest()

        @property
        def tokenizer_name(self) -> str:
            return self._tokenizer_name

        def get_model_info(self) -> dict[str, Any]:
            """The record that `lm_eval` adds to its results."""
            return self.examinee.protocol()

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return self._answer("loglikelihood", requests, lambda args: (args[0], args[1]))

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return self._answer("loglikelihood_rolling", requests, lambda args: args[0])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return self._answer("generate_until", requests, lambda args: (args[0], args[1]))

        def _answer(self, kind: str, requests: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
            answers: list[Any] = getattr(self.examinee, kind)([read(request.args) for request in requests])
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial(kind, request.args, answer)
            return answers

    register("hdlm")(HDLM)
    return HDLM
