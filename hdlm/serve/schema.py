"""Requests and answers as pydantic models: those of OpenAI, and fields of diffusion."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from hdlm.generation.other_names import OTHER_NAMES
from hdlm.generation.settings import FamilyName

__all__ = [
    "AbstractRequest",
    "ChatRequest",
    "CompletionRequest",
    "CorrectRequest",
    "ErrorAnswer",
    "InfillRequest",
    "StreamOptions",
]

Count = Annotated[int, Field(ge=1, le=10**9)]
"""A number of things; far above every limit of a server."""
Text = Annotated[str, Field(max_length=10**7)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(max_length=100)]
Scale = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_KINDS: dict[str, Any] = {"algorithm": Name, "eta": Share, "guidance": Scale}
"""Type of an option of another tool by the setting that it stands for; the others are counts."""


class _AbstractBody(BaseModel, abc.ABC, extra="forbid"):
    """The body of a request for passages; unknown fields are refused, because they would have no effect."""

    @property
    @abc.abstractmethod
    def num_passages(self) -> int:
        """Number of passages that the request asks for."""


if TYPE_CHECKING:
    _OtherOptions = _AbstractBody
else:
    _OtherOptions = create_model(
        "_OtherOptions",
        __base__=_AbstractBody,
        **{
            name: (
                _KINDS.get(setting, Count) | None,
                Field(None, description=f"Another name of `{setting}`."),
            )
            for name, setting in OTHER_NAMES.items()
        },
    )
    """The options of other tools, each with the limits of the setting that it stands for."""


class StreamOptions(BaseModel, extra="forbid"):
    """Options of a stream."""

    include_usage: bool = Field(False, description="Send a last chunk with the usage.")


class AbstractRequest(_OtherOptions, abc.ABC):
    """The fields that all requests for text share, and the options of other tools (`hdlm.generation.other_names`)."""

    model: str = Field(
        "", max_length=500, description="Name of a model in /v1/models; empty for the first one."
    )
    n: Count = Field(1, description="Passages for each prompt.")
    seed: Seed | None = Field(
        None,
        description="Seed of all random numbers; a random one by default. It determines the text exactly.",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="1 leaves the model as it is, 0 writes the likeliest word.",
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Nucleus sampling: draw from the likeliest words that make up this probability.",
    )
    top_k: Count | None = Field(None, description="Number of likeliest words to draw from.")
    min_p: Share | None = Field(None, description="Least probability relative to that of the likeliest word.")
    repetition_penalty: float | None = Field(
        None, ge=1, le=1e6, allow_inf_nan=False, description="Penalty of words that the text already has."
    )
    algorithm: Name | None = Field(
        None,
        description="Sampler: one of `hdlm_algorithms` in /v1/models, or a rule of LLaDA, SDAR or Dream.",
    )
    eta: Share | None = Field(None, description="Strength of corrections and remasking.")
    hyperschedule: FamilyName | None = Field(None, description="Order of generation.")
    steps: Count | None = Field(None, description="Steps that each position takes from noise to word.")
    width: Count | None = Field(None, description="Positions that are written together.")
    sub_block: Count | None = Field(
        None, description="Positions of a sub-block; sub-blocks are written one after the other."
    )
    grid: str | None = Field(None, max_length=10_000, description="Times of the steps; see docs/sampling.md.")
    guidance: Scale | None = Field(None, description="Classifier-free guidance by the prompt; 0 is off.")
    stream: bool = Field(False, description="Send text as soon as it is settled.")
    stream_options: StreamOptions | None = None
    diffusion_frames: bool = Field(
        False, description="With `stream`: send every step, in `hdlm_frame` of a chunk."
    )
    user: str | None = Field(None, max_length=500, description="Has no effect.")


class CompletionRequest(AbstractRequest):
    """A request for /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1000)] = Field(
        "", description="Text to begin with, or several texts."
    )
    suffix: Text | None = Field(
        None, description="Text after the generated part, which has `max_tokens` tokens."
    )
    max_tokens: Count | None = Field(
        16, description="Largest number of tokens to generate; null for as many as fit."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="Texts before which a passage ends."
    )
    ignore_eos: bool = Field(False, description="Do not end at the token that ends a text.")
    echo: bool = Field(False, description="Return the prompt as well.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None,
        description="Return log probabilities of the tokens when they were last written, and of this number of others.",
    )
    best_of: Count | None = Field(None, description="Must equal `n`, if given.")
    frequency_penalty: float | None = Field(None, allow_inf_nan=False, description="Must be 0, if given.")
    presence_penalty: float | None = Field(None, allow_inf_nan=False, description="Must be 0, if given.")
    logit_bias: dict[str, float] | None = Field(None, description="Must be empty, if given.")

    @property
    def num_passages(self) -> int:
        return self.n * (1 if isinstance(self.prompt, str) else len(self.prompt))


class ChatPart(BaseModel, extra="forbid"):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel, extra="forbid"):
    """A message of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=100)]
    content: Text | list[ChatPart]
    name: str | None = Field(None, max_length=100)


class ChatRequest(AbstractRequest):
    """A request for /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_tokens: Count | None = Field(None, description="Largest number of tokens to generate.")
    max_completion_tokens: Count | None = Field(None, description="Another name of `max_tokens`.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    logprobs: bool = Field(False, description="Return log probabilities of the tokens.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="Needs `logprobs`.")
    frequency_penalty: float | None = Field(None, allow_inf_nan=False, description="Must be 0, if given.")
    presence_penalty: float | None = Field(None, allow_inf_nan=False, description="Must be 0, if given.")
    logit_bias: dict[str, float] | None = Field(None, description="Must be empty, if given.")

    @property
    def num_passages(self) -> int:
        return self.n


class InfillRequest(AbstractRequest):
    """A request for /v1/infill."""

    text: Text | Annotated[list[TokenId | None], Field(min_length=1, max_length=10**6)] = Field(
        description="Text with gaps: [MASK] is a gap of one token, [MASK:5] one of five. Or the token ids of the whole "
        "text, null for a gap of one token."
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="As in /v1/completions.")

    @property
    def num_passages(self) -> int:
        return self.n


class CorrectRequest(AbstractRequest):
    """A request for /v1/correct."""

    text: Annotated[Text, Field(min_length=1)] = Field(
        description="A whole text, without gaps, whose wrong words are to be replaced."
    )
    noise: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="Noise fraction at which the text begins; by default where the model expects five wrong words in "
        "a hundred.",
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="As in /v1/completions.")

    @property
    def num_passages(self) -> int:
        return self.n


class ErrorBody(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in the format of OpenAI."""

    error: ErrorBody


class Usage(BaseModel):
    """The cost of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forward_passes: int = Field(description="Network calls that included the passages, in total.")
    tokens_per_forward: float | None = Field(description="Generated tokens per network call and passage.")
    steps: int = Field(description="Generation steps of a passage.")
    time_to_first_block: float | None = Field(description="Seconds until the first text was settled.")


class Choice(BaseModel):
    """A passage."""

    model_config = ConfigDict(extra="allow")

    index: int
    finish_reason: Literal["stop", "length"] | None
    logprobs: dict[str, Any] | None = None


class TextAnswer(BaseModel):
    """Passages, their cost, and the seed that was used."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    seed: int


class ModelEntry(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hdlm"
    max_model_len: int
    hdlm_algorithms: list[str]
    hdlm_correcting: list[str] = Field(description="The algorithms that can correct a finished text.")
    hdlm_hyperschedules: list[str] = list(get_args(FamilyName))
    hdlm_chat: bool


class ModelList(BaseModel):
    """The models of a server."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]
