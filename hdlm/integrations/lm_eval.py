"""The tasks of others: a model of ours as one of `lm_eval`, the language model evaluation harness.

    import lm_eval
    from hdlm.integrations.lm_eval import HDLM

    lm_eval.simple_evaluate(model=HDLM(checkpoint, replicates=32), tasks=["tasks/mine.yaml"])

What it answers, with `bos` (what ends a document, where nothing else begins one) before every text:

    loglikelihood          minus a bound on `-log p(continuation | context)`, the mean of k replicates: exact for
                           autoregression, else too low rather than too high; and whether it is what the model writes
                           if it takes the likeliest word each time, from left to right (`Likelihood.greedy`)
    loglikelihood_rolling  the same of a whole text, every token in one window
    generate_until         what the sampler writes behind the context, on a canvas as long as the model's context, up to
                           the end of the document, a stop string, or `max_gen_toks`, behind which no more is asked
                           of the network; unless a task samples, every draw takes the likeliest word (which positions
                           are written first stays random)

A context that does not fit is cut on its left. Asking for the class imports `lm_eval` and registers the name "hdlm"
there; `HarnessModel` is the same without `lm_eval`.
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
"""Told what is going on, how much of it is done, and of how much."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_DEFAULT_LENGTH = 256
"""Tokens that a task asks for if it does not say, as elsewhere in `lm_eval`."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_OPTIONS = {"until", "do_sample", *_LENGTHS, *_SAMPLING}


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@final
class HarnessModel:
    """A model that takes the tests of `lm_eval`, without `lm_eval`.

    Args:
        checkpoint: The model, with its tokenizer.
        bound: By default the paper's, where noise ends in masks, else that of the process.
        regime: What the bound measures along; by default that of the first hyperschedule of the checkpoint.
        replicates: Estimates of each number; more are surer, and slower.
        settings: How to write, where a task does not say.
        batch_size: Windows or canvases in a pass.
        seed: Of all random numbers.
        device: That of the model by default, and no other.
        watch: Told how far it is.

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
        watch: Watch = _silent,
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
        """How it answers, for the record."""
        return {
            "bound": self.measure.bound,
            "estimator": self.measure.measured_by,
            "hyperschedule": describe_piece(self.measure.regime.hyperschedule),
            "replicates": self._replicates,
            "seed": self.measure.seed,
            "settings": asdict(self._settings),
        }

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): `log p` of the continuation, and whether it is the greedy one."""
        texts = [self._pair(context, continuation) for context, continuation in pairs]
        windows = [
            split_text([*before, *behind], len(before), self._length, alike=True) for before, behind in texts
        ]
        nats = self._nats([window for some in windows for window in some])
        greedy = self.measure.greedy(
            [window for some in windows for window in some], batch_size=self._batch_size
        )
        answers, at = [], 0
        for some in windows:
            here = slice(at, at + len(some))
            answers.append((-sum(nats[here], 0.0), all(greedy[here])))
            at += len(some)
        return answers

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Of each text: `log p` of all its tokens."""
        encoded = [self._tokenizer.encode(text) if text else [] for text in texts]
        windows = [split_text([*self._start, *ids], len(self._start), self._length) for ids in encoded]
        nats, answers, at = self._nats([window for some in windows for window in some]), [], 0
        for some in windows:
            answers.append(-sum(nats[at : at + len(some)], 0.0))
            at += len(some)
        return answers

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Of each (context, options): what is written behind it.

        Raises:
            ValueError: If an option is unknown.
        """
        groups: dict[Settings, list[int]] = {}
        for index, (_, options) in enumerate(requests):
            groups.setdefault(self._how(options), []).append(index)
        answers = [""] * len(requests)
        done = 0
        for settings, members in groups.items():
            for index, text in zip(
                members, self._written([requests[i] for i in members], settings), strict=True
            ):
                answers[index] = text
            done += len(members)
            self._watch("writing", done, len(requests))
        return answers

    @property
    def _length(self) -> int:
        return self.measure.regime.length

    @property
    def _start(self) -> list[int]:
        first = self._checkpoint.vocabulary.bos
        first = self._checkpoint.vocabulary.eos if first is None else first
        return [] if first is None else [first]

    def _nats(self, windows: Sequence[Window]) -> list[float]:
        replicates = 1 if self.measure.measured_by == "exact" else self._replicates
        done, total = 0, len(windows) * replicates

        def tell(more: int) -> None:
            nonlocal done
            done += more
            self._watch("measuring", done, total)

        nats: list[float] = self.measure.nats(
            windows, replicates, batch_size=self._batch_size, watch=tell
        ).tolist()
        return nats

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens before the continuation and of it; a space between them belongs to it."""
        words = context.rstrip()
        continuation = context[len(words) :] + continuation
        before = [*self._start, *(self._tokenizer.encode(words) if words else [])]
        if continuation.startswith(" "):
            return before, self._tokenizer.encode(continuation[1:], "spaced")
        return before, self._tokenizer.encode(continuation, "glued" if words else "start")

    def _how(self, options: Mapping[str, Any]) -> Settings:
        """Settings of a request: greedy unless it samples."""
        strange = sorted(set(options) - _OPTIONS)
        if strange:
            raise ValueError(
                f"a task asks for {', '.join(strange)}, which this model does not know; it knows "
                f"{', '.join(sorted(_OPTIONS))}."
            )
        asked = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
        if not options.get("do_sample", asked.get("temperature", 0) > 0) or asked.get("temperature") == 0:
            return replace(self._settings, top_k=1, top_p=None, min_p=None, temperature=1.0)
        return replace(self._settings, **asked)

    def _written(self, requests: Sequence[tuple[str, Mapping[str, Any]]], settings: Settings) -> list[str]:
        """What is written behind some contexts in one way."""
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
        """The text behind what was given, up to whatever ends it first, and whether something does."""
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
    """The class `HDLM`, made when it is asked for: it needs `lm_eval` to be a model of it.

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
            checkpoint: The model, or what `hdlm.load` opens: a folder, a file, a hub id.
            batch_size: Windows or canvases in a pass; None for the usual number.
            max_batch_size: Of no account: nothing is tried out.
            device: Where the model is; None for where its weights are.
            options: As in `HarnessModel`.
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
            """What `lm_eval` writes beside its results."""
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
