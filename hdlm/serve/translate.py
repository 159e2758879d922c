"""From a request of a client to requests of the writer, and from passages to an answer."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, final

from hdlm.generation.company import WriteRequest
from hdlm.generation.correction import matching_noise
from hdlm.generation.other_names import OTHER_NAMES, settings_of
from hdlm.generation.passages import Ending
from hdlm.generation.settings import Settings
from hdlm.generation.text import BLANK, Passage, has_gaps
from hdlm.generation.write import prompt_ids
from hdlm.sampling import Change, Trace
from hdlm.serve.jobs import Job, JobEvent
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions
from hdlm.serve.schema import (
    AbstractRequest,
    ChatRequest,
    CompletionRequest,
    CorrectRequest,
    InfillRequest,
)
from hdlm.strict_config import OptionError

__all__ = ["BadRequestError", "Plan", "client_plan"]

Kind = Literal["completion", "chat", "infill", "correction"]
_OBJECTS: dict[tuple[Kind, bool], str] = {
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("infill", False): "infill",
    ("infill", True): "infill.chunk",
    ("correction", False): "correction",
    ("correction", True): "correction.chunk",
}
"""Value of `object` in answers and in chunks."""
_FIELDS = {"length": "max_tokens", "num": "n", "num_levels": "steps", "k": "top_k"}
"""Field of a request for an argument of the library."""
_SETTINGS = AbstractRequest.model_fields.keys() & {*OTHER_NAMES, *(own.name for own in fields(Settings))}
"""Fields of a request that are settings, by their names here or by those of other tools."""
_LEAST = -9999.0
"""Log probability that stands for minus infinity, which JSON lacks."""
_FRAME_ALTERNATIVES = 5
"""Number of likeliest words of a change in a frame."""


@final
class BadRequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        message: What is wrong, and what would work.
        param: The field of the request.
        status: Status of the answer.
        code: Name of the error for programs.
    """

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@final
@dataclass(frozen=True)
class Plan:
    """What a client asks for.

    Attributes:
        kind: Kind of the answer.
        model: Model of the request.
        prompts: The prompts, with their gaps; token ids where the client sent them.
        settings: The settings of generation, for each prompt.
        num: Passages for each prompt.
        seed: Seed of all random numbers.
        ending: Where passages end.
        echo: Whether the answer contains the prompt.
        logprobs: Number of other words with log probabilities; None for no log probabilities.
        frames: Whether every step is sent.
        usage: Whether a stream ends with the usage.
        noise: Noise fraction at which a text to correct begins; None if nothing is corrected.
        sent: Names of the fields that the client has sent.
        created: Time of the request, in seconds since 1970.
        id: Name of the answer.
    """

    kind: Kind
    model: ServedModel
    prompts: tuple[str | Sequence[int | None], ...]
    settings: tuple[Settings, ...]
    num: int
    seed: int
    ending: Ending
    echo: bool = False
    logprobs: int | None = None
    frames: bool = False
    usage: bool = False
    noise: float | None = None
    sent: Collection[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"hdlm-{secrets.token_hex(12)}")

    @property
    def alternatives(self) -> int | None:
        """Number of likeliest words that traces keep; None if there are no traces."""
        if not self.frames:
            return self.logprobs
        return max(_FRAME_ALTERNATIVES, self.logprobs or 0)

    @property
    def whole(self) -> bool:
        """Whether gaps are filled in or words corrected, so that a passage has no text before it is finished."""
        return self.noise is not None or has_gaps(self.prompts[0])

    def request(self, place: int, **watchers: Any) -> WriteRequest:
        """The request to the writer for one prompt.

        Raises:
            BadRequestError: If it is not valid.
        """
        try:
            return WriteRequest(
                self.model.checkpoint,
                settings=self.settings[place],
                num=self.num,
                seed=self.seed,
                ending=self.ending,
                noise=self.noise,
                **watchers,
            )
        except ValueError as error:
            raise _refused(error, self.sent) from error

    # -- answers --------------------------------------------------------------------------------------------

    def answer(self, job: Job, passages: dict[tuple[int, int], Passage]) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for place, index in sorted(passages):
            passage = passages[place, index]
            text = self._text(job.requests[place], passage)
            content: dict[str, Any] = {"text": text}
            if self.kind == "chat":
                content = {"message": {"role": "assistant", "content": text}}
            content |= self._parts(job.requests[place], passage)
            choices.append(self._choice(place, index, content, **self._end(job, place, index, passage)))
        return self._object(False, choices) | {"usage": self.usage_of(job, passages), "seed": self.seed}

    def chunks(self, job: Job, event: JobEvent) -> list[dict[str, Any]]:
        """The chunks of a stream for an event."""
        place, index = event.prompt, event.index
        if event.kind == "frame":
            return [self._chunk(place, index, "") | {"hdlm_frame": event.value}]
        if event.kind == "text":
            return [] if self.whole else [self._chunk(place, index, event.value)]
        passage: Passage = event.value
        end = self._end(job, place, index, passage)
        if not self.whole:
            return [self._chunk(place, index, "", **end)]
        request = job.requests[place]
        return [
            self._chunk(place, index, self._text(request, passage), **self._parts(request, passage), **end)
        ]

    def first_chunks(self, job: Job) -> list[dict[str, Any]]:
        """The chunks before all text: the role of a chat, or the prompts that are echoed."""
        pairs = [(place, index) for place in range(len(self.prompts)) for index in range(self.num)]
        if self.kind == "chat":
            return [
                self._object(True, [self._choice(*pair, {"delta": {"role": "assistant", "content": ""}})])
                for pair in pairs
            ]
        return [self._chunk(*pair, job.requests[pair[0]].prompt_text) for pair in pairs if self.echo]

    def usage_chunk(self, job: Job, passages: dict[tuple[int, int], Passage]) -> dict[str, Any]:
        """The last chunk of a stream."""
        return self._object(True, []) | {"usage": self.usage_of(job, passages), "seed": self.seed}

    def usage_of(self, job: Job, passages: dict[tuple[int, int], Passage]) -> dict[str, Any]:
        """The cost of a request."""
        read = (request.given for request in job.requests)
        given = sum(own.fixed.numel() if own.is_draft else int(own.fixed.sum()) for own in read)
        written = sum(len(passage.tokens) - passage.given for passage in passages.values())
        calls = sum(passage.evaluations for passage in passages.values())
        return {
            "prompt_tokens": given,
            "completion_tokens": written,
            "total_tokens": given + written,
            "forward_passes": calls,
            "tokens_per_forward": round(written / calls, 4) if calls else None,
            "steps": max(request.regime.hyperschedule.num_steps for request in job.requests),
            "time_to_first_block": job.time_to_first_block,
        }

    def _parts(self, request: WriteRequest, passage: Passage) -> dict[str, Any]:
        """The texts that fill the gaps of a passage, or the tokens that a correction has replaced."""
        if self.kind == "infill":
            return {"gaps": request.gap_texts(passage)}
        if self.kind != "correction":
            return {}
        read = request.checkpoint.tokenizer.piece
        pairs = enumerate(zip(request.given.tokens[0].tolist(), passage.tokens, strict=True))
        return {
            "corrections": [
                {"position": position, "old": read(old), "new": read(new)}
                for position, (old, new) in pairs
                if old != new
            ]
        }

    def _text(self, request: WriteRequest, passage: Passage) -> str:
        if self.kind in ("infill", "correction"):
            return passage.text
        if self.whole and not self.echo:
            return request.gap_texts(passage)[0]
        return passage.text if self.echo else passage.text[request.start_of(passage.text) :]

    def _end(self, job: Job, place: int, index: int, passage: Passage) -> dict[str, Any]:
        """The last values of a choice."""
        stopped = index in job.requests[place].reader.texts or self.kind in ("infill", "correction")
        end: dict[str, Any] = {"finish_reason": "stop" if stopped else "length"}
        if self.logprobs is not None:
            end["logprobs"] = self._logprobs(job.requests[place], job.traces[place], index, passage)
        return end

    def _chunk(self, place: int, index: int, text: str, **end: Any) -> dict[str, Any]:
        content: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            content = {"delta": {"content": text} if text else {}}
        return self._object(True, [self._choice(place, index, content, **end)])

    def _choice(self, place: int, index: int, content: dict[str, Any], **end: Any) -> dict[str, Any]:
        number = place * self.num + index
        return {"index": number, **content, "logprobs": None, "finish_reason": None} | end

    def _object(self, stream: bool, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": _OBJECTS[self.kind, stream],
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }

    def _logprobs(self, request: WriteRequest, trace: Trace, index: int, passage: Passage) -> dict[str, Any]:
        """Log probabilities of the tokens when they were last written."""
        last = {change.position: change for change in trace.changes if change.sequence == index}
        fixed = request.given.fixed[0].tolist()
        places = [place for place in range(len(passage.tokens)) if self.echo or not fixed[place]]
        rows = [_TokenRow.of(request, passage.tokens[place], last.get(place)) for place in places]
        return _chat_logprobs(rows, self.logprobs or 0) if self.kind == "chat" else _text_logprobs(rows)


@final
@dataclass(frozen=True)
class _TokenRow:
    """A token with its log probability, and those of others."""

    text: str
    logprob: float | None
    others: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, request: WriteRequest, token: int, change: Change | None) -> _TokenRow:
        read = request.checkpoint.tokenizer.piece
        known = () if change is None or change.alternatives is None else change.alternatives
        others = tuple((read(other), _log(p)) for other, p in known)
        p = None if change is None else change.p_new
        return cls(read(token), None if p is None else _log(p), others)


def _log(p: float) -> float:
    return math.log(p) if p > 0 else _LEAST


def _text_logprobs(rows: Sequence[_TokenRow]) -> dict[str, Any]:
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + len(row.text))
    return {
        "tokens": [row.text for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [dict(row.others) or None for row in rows],
        "text_offset": ends[:-1],
    }


def _chat_logprobs(rows: Sequence[_TokenRow], count: int) -> dict[str, Any]:
    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        number = _LEAST if logprob is None else logprob
        return {"token": text, "logprob": number, "bytes": list(text.encode("utf-8", "replace"))}

    return {
        "content": [
            entry(row.text, row.logprob) | {"top_logprobs": [entry(*other) for other in row.others[:count]]}
            for row in rows
        ],
        "refusal": None,
    }


# -- requests ------------------------------------------------------------------------------------------------


def client_plan(
    body: CompletionRequest | ChatRequest | CorrectRequest | InfillRequest,
    models: dict[str, ServedModel],
    options: ServeOptions,
) -> Plan:
    """What a client asks for.

    Raises:
        BadRequestError: If it cannot be done.
    """
    model = next(iter(models.values())) if not body.model else models.get(body.model)
    if model is None:
        known = ", ".join(models)
        message = f"There is no model {body.model!r}; there are: {known}."
        raise BadRequestError(message, "model", 404, "model_not_found")
    _check_common(body, options)
    settings = _settings(body, model, options)
    common = partial(
        Plan,
        model=model,
        num=body.n,
        seed=secrets.randbits(53) if body.seed is None else body.seed,
        frames=body.diffusion_frames,
        usage=body.stream_options is not None and body.stream_options.include_usage,
        sent=body.model_fields_set,
    )
    if isinstance(body, InfillRequest):
        if None not in body.text if isinstance(body.text, list) else not has_gaps(body.text):
            raise BadRequestError(
                "The text has no gap: write [MASK] for one token, [MASK:5] for five, null in a list of token ids.",
                "text",
            )
        return common(
            "infill", prompts=(body.text,), settings=(settings,), ending=Ending(), logprobs=body.logprobs
        )
    if isinstance(body, CorrectRequest):
        return _correction_plan(body, model, settings, common)
    _check_unsupported(body)
    if isinstance(body, ChatRequest):
        return _chat_plan(body, model, settings, common)
    return _completion_plan(body, model, settings, common)


def _correction_plan(
    body: CorrectRequest, model: ServedModel, settings: Settings, common: partial[Plan]
) -> Plan:
    try:
        model.check_correction(settings.algorithm)
    except ValueError as error:
        raise _refused(error, body.model_fields_set) from error
    noise = matching_noise(model.checkpoint.denoiser.process) if body.noise is None else body.noise
    how = {"ending": Ending(), "logprobs": body.logprobs, "noise": noise}
    return common("correction", prompts=(body.text,), settings=(settings,), **how)


def _completion_plan(
    body: CompletionRequest,
    model: ServedModel,
    settings: Settings,
    common: partial[Plan],
) -> Plan:
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if body.suffix is not None:
        return _suffix_plan(body, prompts, settings, common)
    sized = [_sized(settings, model, prompt, body, "prompt") for prompt in prompts]
    ending = _ending(body, model)
    how = {"echo": body.echo, "logprobs": body.logprobs, "ending": ending}
    return common("completion", prompts=tuple(prompts), settings=tuple(sized), **how)


def _suffix_plan(
    body: CompletionRequest, prompts: list[str], settings: Settings, common: partial[Plan]
) -> Plan:
    """A plan to fill in the middle."""
    if body.stop:
        raise BadRequestError("`stop` has no effect with `suffix`: leave one of them out.", "stop")
    count, _ = _num_tokens(body)
    if count is None:
        raise BadRequestError("`suffix` needs `max_tokens`, the number of tokens before it.", "max_tokens")
    if any(BLANK.search(text) for text in (*prompts, body.suffix or "")):
        raise BadRequestError(
            "The text has [MASK], so it cannot have a `suffix`: send the whole text to /v1/infill.", "suffix"
        )
    texts = tuple(f"{prompt}[MASK:{count}]{body.suffix}" for prompt in prompts)
    how = {"echo": body.echo, "logprobs": body.logprobs, "ending": Ending()}
    return common(
        "completion", prompts=texts, settings=(replace(settings, new_tokens=None),) * len(texts), **how
    )


def _chat_plan(body: ChatRequest, model: ServedModel, settings: Settings, common: partial[Plan]) -> Plan:
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
    try:
        prompt = model.prompt_of(messages)
    except ValueError as error:
        raise BadRequestError(str(error), "messages") from error
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequestError("`top_logprobs` needs `logprobs`: true.", "top_logprobs")
    sized = _sized(settings, model, prompt, body, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return common(
        "chat", prompts=(prompt,), settings=(sized,), ending=_ending(body, model), logprobs=logprobs
    )


def _sized(
    settings: Settings,
    model: ServedModel,
    prompt: str,
    body: CompletionRequest | ChatRequest,
    where: str,
) -> Settings:
    """Settings with a canvas for a prompt, the field `where`, and the number of tokens that the client asks for."""
    if BLANK.search(prompt):
        raise BadRequestError("The prompt has gaps, [MASK]: send it to /v1/infill as `text`.", where)
    given = len(prompt_ids(model.checkpoint.tokenizer, prompt))
    room = model.checkpoint.length - given
    if room < 1:
        raise BadRequestError(
            f"The prompt has {given} tokens, and the model has a context of {model.checkpoint.length}: shorten it.",
            where,
            code="context_length_exceeded",
        )
    count, name = _num_tokens(body)
    if count is not None and count > room and name in body.model_fields_set:
        raise BadRequestError(
            f"`{name}` is {count}; at most {room} fit, as the prompt has {given} tokens and the model a context of "
            f"{model.checkpoint.length}.",
            name,
            code="context_length_exceeded",
        )
    return replace(settings, length=given + min(room, count or room), new_tokens=None)


def _ending(body: CompletionRequest | ChatRequest, model: ServedModel) -> Ending:
    strings = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    ends = model.checkpoint.tokenizer.vocabulary.eos is not None and not body.ignore_eos
    return Ending(ends, strings)


def _settings(body: AbstractRequest, model: ServedModel, options: ServeOptions) -> Settings:
    """The settings of generation that the fields of a request describe, by any of their names."""
    given = {
        name: value
        for name in _SETTINGS & body.model_fields_set
        if (value := getattr(body, name)) is not None and (name, value) != ("top_p", 1)
    }
    try:
        settings = settings_of(model.checkpoint, given)
        chosen = settings.algorithm != Settings().algorithm or "algorithm" in map(_setting_of, given)
        if not chosen and model.supported and settings.algorithm not in model.supported:
            settings = replace(settings, algorithm=model.supported[0])
        model.check_algorithm(settings.algorithm)
    except ValueError as error:
        raise _refused(error, body.model_fields_set) from error
    if settings.steps is not None and settings.steps > options.max_steps:
        (name, *_) = (name for name in given if _setting_of(name) == "steps")
        raise BadRequestError(
            f"`{name}` is {settings.steps}; this server takes at most {options.max_steps}.", name
        )
    return settings


def _setting_of(field: str) -> str:
    """The field of `Settings` for a field of a request."""
    return OTHER_NAMES.get(field, field)


def _check_common(body: AbstractRequest, options: ServeOptions) -> None:
    if body.n > options.max_n:
        raise BadRequestError(f"`n` is {body.n}; this server writes at most {options.max_n} passages.", "n")
    if body.num_passages > options.max_n:
        raise BadRequestError(
            f"The request asks for {body.num_passages} passages; this server writes at most {options.max_n} in a "
            "request.",
            "prompt",
        )
    if body.diffusion_frames and not body.stream:
        raise BadRequestError("`diffusion_frames` needs `stream`: true.", "diffusion_frames")
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("`stream_options` needs `stream`: true.", "stream_options")


def _check_unsupported(body: CompletionRequest | ChatRequest) -> None:
    """Refuse fields of OpenAI that would have no effect."""
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(body, name):
            raise BadRequestError(f"`{name}` is not supported; use `repetition_penalty`.", name)
    if body.logit_bias:
        raise BadRequestError("`logit_bias` is not supported: leave it out.", "logit_bias")
    if isinstance(body, CompletionRequest) and body.best_of not in (None, body.n):
        raise BadRequestError("`best_of` is not supported beyond `n`: leave it out.", "best_of")


def _num_tokens(body: CompletionRequest | ChatRequest) -> tuple[int | None, str]:
    """The number of tokens that the client asks for, None for all that fit, and the field that it has used."""
    names = ["max_tokens", "max_completion_tokens"]
    names += [name for name, setting in OTHER_NAMES.items() if setting == "new_tokens"]
    given = {name: getattr(body, name) for name in names if name in body.model_fields_set}
    numbers = {name: number for name, number in given.items() if number is not None}
    if len(set(numbers.values())) > 1:
        first, second, *_ = numbers
        raise BadRequestError(
            f"`{first}` and `{second}` are two names of one field: give one of them.", second
        )
    name = next(iter(numbers), "max_tokens")
    return getattr(body, name), name


def _refused(error: ValueError, sent: Collection[str]) -> BadRequestError:
    """The answer to a request that the library refuses; it names a field that the client has sent, if there is one."""
    quoted, words = re.findall(r"`(\w+)`", str(error)), re.findall(r"\w+", str(error))
    names = [error.option] if isinstance(error, OptionError) else quoted or words
    known = {*CompletionRequest.model_fields, *CorrectRequest.model_fields}
    fields = [_FIELDS.get(name, name) for name in names]
    named = next((name for name in fields if name in known), None)
    block = "block" if named in ("width", "sub_block") else named
    meant = {block, *(fields if quoted else ()), named}
    others = [name for name in sorted(sent) if named is not None and _setting_of(name) in meant]
    return BadRequestError(str(error), named if named in sent or not others else others[0])
