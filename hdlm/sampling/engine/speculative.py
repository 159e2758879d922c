"""Speculative sampling: a network that is autoregressive and diffusion at once drafts words and verifies them.

The text has exactly the distribution of autoregressive sampling (Leviathan et al., arXiv 2211.17192), with fewer calls
of the network. A call computes, for each sequence, behind the positions whose keys and values are cached:

    settled words | drafted words | masks

Settled and drafted words attend causally, so their outputs are those of autoregressive sampling: they verify the drafts
and give the next word. The masks attend to all words before them, as in a block: their outputs are the next drafts. So
a call settles at least one word, and drafts of a call whose own drafts were all accepted cost no other call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, ForwardContext, Prediction, Question, resolve_device
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling.base import Answer, Reading, RowTransforms, Step, Transform, require_masks
from hdlm.sampling.draws import draw_index
from hdlm.sampling.engine.engine import (
    Engine,
    EngineRequest,
    Finished,
    Stop,
    check_first,
    check_length,
    seeds_of,
)
from hdlm.sampling.engine.window import Execution
from hdlm.sampling.frame import Frame, Reads

__all__ = ["Speculative", "SpeculativeEngine", "new_engine"]

_EXACT = Execution()
_STEP = 2**32 - 1
"""The step in the address of random numbers: those of a position are used once. A draft behind a rejected word is
dropped, and nothing that is kept has depended on it, so its numbers serve the next draft."""
_NUM_STREAMS = 3
_DRAW, _ACCEPT, _RESIDUAL = range(_NUM_STREAMS)
"""Random streams: of a word, of its acceptance, and of the word in the place of a rejected one."""


@final
@dataclass(frozen=True)
class Speculative:
    """Speculative sampling along an autoregressive hyperschedule, for `sample` instead of a step.

    It is not a step: the number of words that a call settles depends on the outputs of the network, so it has an engine
    of its own.

    Attributes:
        width: Number of masks that are drafted together, at least 1: best as many as in a block of training. It changes
            the cost and not the distribution; 1 is autoregression.
    """

    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"`width` of speculative sampling must be at least 1; got {self.width}.")


@final
@dataclass(eq=False)
class _Sequence:
    """A sequence that is being written.

    Attributes:
        request: The request that it belongs to.
        index: Index of the sequence in the run.
        x: Its tokens: settled words, then masks and given words.
        fixed: Positions that are given.
        length: Number of positions to write.
        numbers: Uniform numbers of each stream.
        cache: Keys and values of its first words.
        settled: Number of settled words at the beginning.
        cached: Number of words whose keys and values are cached.
        drafts: Drafted words after the settled ones.
        q: For each draft, the distribution that it was drawn from.
        kept: Number of valid tokens, if it has stopped.
        num_evaluations: Number of network calls that included it.
        num_computed: Number of its positions that these calls have computed in total.
    """

    request: EngineRequest
    index: int
    x: Int[Tensor, " l"]
    fixed: Bool[Tensor, " l"]
    length: int
    numbers: Float[Tensor, "streams l"]
    cache: Any
    settled: int = 0
    cached: int = 0
    drafts: Int[Tensor, " d"] = field(init=False)
    q: Float[Tensor, "d words"] = field(init=False)
    kept: int | None = None
    num_evaluations: int = 0
    num_computed: int = 0

    def __post_init__(self) -> None:
        self._given = self.fixed[: self.length].tolist()
        self.settle(self.x[:0])

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to write."""
        return self.kept is not None or self.settled >= self.length

    @property
    def drafted(self) -> range:
        """The positions of its drafts."""
        return range(self.settled, self.settled + len(self.drafts))

    @property
    def verified(self) -> range:
        """The positions whose words a call determines: those of the drafts and the next one."""
        return range(self.settled, min(self.drafted.stop + 1, self.length))

    def settle(self, words: Int[Tensor, " n"]) -> None:
        """Write the next words, with the given ones that follow them, and drop the drafts."""
        self.x = self.x.clone()
        self.x[self.settled : self.settled + len(words)] = words
        self.settled += len(words)
        self.settled += sum(1 for _ in takewhile(bool, self._given[self.settled :]))
        self.drafts, self.q = self.x[:0], self.numbers[:0]

    def with_drafts(self) -> Int[Tensor, " l"]:
        """Its tokens with the drafted words."""
        return torch.cat([self.x[: self.settled], self.drafts, self.x[self.drafted.stop :]])

    def before(self, columns: range) -> Int[Tensor, "n l"]:
        """The tokens of autoregressive sampling when it writes each of some positions."""
        places = torch.arange(len(self.x), device=self.x.device)
        return torch.where(places < places[_slice(columns), None], self.with_drafts(), self.x)


@final
@dataclass(eq=False)
class _Turn:
    """A call of the network.

    Attributes:
        sequences: The sequences that take part in it.
        questions: Questions to the network, one for each sequence.
        begins: For each sequence, the place that position 0 would have in the prediction.
        prediction: The answer; None before the call.
    """

    sequences: list[_Sequence]
    questions: list[Question]
    begins: list[int] = field(default_factory=list)
    prediction: Prediction | None = None


@final
class SpeculativeEngine:
    """Sequences that are written by speculative sampling; it is used like `Engine`.

    Args:
        denoiser: Model of `p(x_0 | x_t)`, shifted, whose process ends in masks.
        regime: An autoregressive hyperschedule, and the attention; its length is the maximum length of a sequence.
        sampler: The width of drafts.
        seed: Default seed of all random numbers.
        transforms: Transforms of the distributions of drafts and of verified words, in order.
        execution: Cache and device settings.
        stop: Where sequences may end before all their positions are written.
        watch: Called with a `Frame` of each sequence after each call. Its step is the step of autoregressive sampling
            that writes the last settled word.

    Attributes:
        denoiser: The model; engines with one denoiser can share network calls.
        num_evaluations: Number of network calls so far.
        awaited: Number of sequences that will still be added, for the `share` of frames.

    Raises:
        ValueError: If the network cannot be read causally, or the cache is approximate.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        regime: Regime,
        sampler: Speculative,
        *,
        seed: int = 0,
        transforms: Sequence[Transform] = (),
        execution: Execution = _EXACT,
        stop: Stop | None = None,
        watch: Callable[[Frame], None] | None = None,
    ) -> None:
        self._device = resolve_device(denoiser, execution.device)
        _check_causal(denoiser, regime)
        if execution.approximate is not None:
            raise ValueError("Speculative sampling has an exact cache: leave the approximate cache out.")
        self.num_evaluations, self.awaited = 0, 0
        self.denoiser, self._regime, self._width = denoiser, regime, sampler.width
        self._seed, self._request = seed, EngineRequest(tuple(transforms), stop, watch)
        self._use_cache = execution.use_cache
        self._sequences: list[_Sequence] = []
        self._num_written = 0
        self._turn: _Turn | None = None

    def __len__(self) -> int:
        """Number of unfinished sequences."""
        return len(self._sequences)

    def add(
        self,
        sequence: Int[Tensor, " b"],
        *,
        tokens: Int[Tensor, "#b l"] | None = None,
        fixed: Bool[Tensor, "#b l"] | None = None,
        is_draft: bool = False,
        length: int | None = None,
        seed: int | Int[Tensor, " seeds"] | None = None,
        together: bool = False,
        request: EngineRequest | None = None,
    ) -> None:
        """Add sequences, at any time; the arguments are those of `Engine.add`. `together` has no effect.

        Raises:
            ValueError: If the arguments do not fit the canvas, the first token is not given, or the tokens are a draft.
        """
        canvas = self._regime.length
        length = check_length(length, canvas)
        check_first(self.denoiser, fixed)
        if is_draft or tokens is None or fixed is None:
            raise ValueError(
                "Speculative sampling writes from left to right after a prompt and corrects no draft: use another "
                "algorithm, such as acs."
            )
        given = fixed.expand(len(sequence), -1).to(self._device)
        x = torch.where(given, tokens.to(self._device), self.denoiser.process.mask_id)
        positions = torch.arange(canvas, device=self._device)
        given = given | (positions >= length)
        draw = Randomness.of_rows(seeds_of(seed, self._seed, len(sequence))).uniform
        numbers = torch.stack([draw(sequence[:, None], _STEP, positions, s) for s in range(_NUM_STREAMS)], 1)
        asked = self._request if request is None else request
        for row, index in enumerate(sequence.tolist()):
            cache = self.denoiser.new_cache() if self._use_cache else None
            self._sequences.append(_Sequence(asked, index, x[row], given[row], length, numbers[row], cache))

    def remove(self, request: EngineRequest) -> None:
        """Remove the sequences of a request, at any time. It changes no token of the others."""
        self._sequences = [sequence for sequence in self._sequences if sequence.request is not request]

    def prepare(self) -> list[Question]:
        """The questions of the next network call, which several engines may share; see `Engine.prepare`."""
        waiting = [sequence for sequence in self._sequences if not sequence.is_over]
        self._turn = _Turn(waiting, [self._question(sequence) for sequence in waiting])
        return self._turn.questions

    def answer(self, prediction: Prediction, begin: int) -> None:
        """Give the answer to the questions of `prepare`; its rows start at index `begin` of the prediction.

        Raises:
            RuntimeError: If no call is prepared.
        """
        if self._turn is None:
            raise RuntimeError("No call is prepared: call `prepare` first.")
        self.num_evaluations += 1
        self._turn.prediction = prediction
        for sequence, question in zip(self._turn.sequences, self._turn.questions, strict=True):
            size = question.tokens.numel()
            self._turn.begins.append(begin - sequence.cached)
            begin += size
            sequence.num_evaluations += 1
            sequence.num_computed += size

    def advance(self) -> list[Finished]:
        """Settle at least one word of each sequence, in one call of the network.

        Returns:
            The finished sequences, which are removed from the engine.
        """
        if self._turn is None:
            questions = self.prepare()
            if questions:
                self.answer(self.denoiser.predict_many(questions), 0)
        turn, self._turn = self._turn, None
        if turn is not None and turn.prediction is not None:
            self._read(turn.sequences, turn.prediction, turn.begins)
        done = [sequence for sequence in self._sequences if sequence.is_over]
        self._sequences = [sequence for sequence in self._sequences if not sequence.is_over]
        return [_finished(sequence) for sequence in done]

    def _read(self, sequences: list[_Sequence], prediction: Prediction, begins: list[int]) -> None:
        """Verify the drafts of some sequences; draft again where all were accepted."""
        columns = [sequence.verified for sequence in sequences]
        p = self._laws(prediction, sequences, begins, columns)
        counts = _num_accepted(sequences, p)
        words = _settled_words(sequences, p, counts)
        drafting = []
        for sequence, begin, count, own in zip(sequences, begins, counts, words, strict=True):
            end, all_accepted = sequence.drafted.stop, count == len(sequence.drafts)
            self._keep(sequence, count)
            self._settle(sequence, own, prediction, begin)
            free = range(sequence.settled, min(end + self._width, sequence.length))
            if free and all_accepted and not sequence.is_over:
                drafting.append((sequence, begin, free))
        if drafting:
            self._draft(prediction, *map(list, zip(*drafting, strict=True)))

    def _keep(self, sequence: _Sequence, count: int) -> None:
        """Keep the settled words and some of the drafts in the cache, which holds all of them."""
        if sequence.cache is None:
            return
        sequence.cached = sequence.settled + count
        if count < len(sequence.drafts):
            self.denoiser.retain(sequence.cache, torch.arange(sequence.cached, device=self._device))

    def _settle(self, sequence: _Sequence, words: Tensor, prediction: Prediction, begin: int) -> None:
        """Settle words of a sequence, call its watcher, and ask whether it stops."""
        request, shown, columns = sequence.request, sequence.x, sequence.verified
        before = None if request.watch is None else sequence.before(columns)
        sequence.settle(words)
        self._num_written += sequence.settled - columns.start
        if before is not None:
            places = torch.arange(len(shown), device=self._device)
            place = torch.where(places < columns.start + len(words), begin + places, -1)[None]
            answer = Answer(prediction, place)
            self._show(sequence, shown, dict(zip(columns, before[: len(words)], strict=False)), answer)
        if request.stop is not None:
            sequence.kept = request.stop(sequence.index, sequence.x[: sequence.settled])

    def _question(self, sequence: _Sequence) -> Question:
        """The words that are not cached, the drafts, and masks to draft from."""
        words = sequence.drafted.stop
        window = torch.arange(sequence.cached, min(words + self._width, sequence.length), device=self._device)
        num_words = words - sequence.cached
        seen = torch.ones(len(window), sequence.cached + len(window), dtype=torch.bool, device=self._device)
        seen = seen.tril(sequence.cached)
        if self._regime.active == "full":
            seen[num_words:] = True
        store = None if sequence.cache is None else torch.arange(num_words, device=self._device)
        tokens = sequence.with_drafts()[window]
        noise = self._noise(tokens)[None]
        given = sequence.fixed[None, window]
        context = ForwardContext(window[None], seen[None], sequence.cache, store, ordered=True, given=given)
        return Question(tokens[None], noise, context)

    def _noise(self, tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The noise fraction of tokens: words are settled, and masks are pure noise."""
        is_mask = tokens == self.denoiser.process.mask_id
        return is_mask * torch.tensor(self._regime.final_noise, dtype=torch.float64, device=self._device)

    def _laws(
        self,
        prediction: Prediction,
        sequences: list[_Sequence],
        begins: list[int],
        columns: list[range],
    ) -> Float[Tensor, "n words"]:
        """The transformed distributions of words at some positions of some sequences, one after the other."""
        parts = list(zip(sequences, columns, strict=True))
        tokens = torch.cat([sequence.before(own) for sequence, own in parts])
        at = torch.tensor([column for own in columns for column in own], device=self._device)
        begin = torch.tensor(
            [begin for begin, own in zip(begins, columns, strict=True) for _ in own], device=self._device
        )
        where = torch.arange(tokens.shape[1], device=self._device) == at[:, None]
        place = torch.where(where, (begin + at)[:, None], -1)
        transforms = RowTransforms(tuple(sequence.request.transforms for sequence, own in parts for _ in own))
        names = torch.tensor([sequence.index for sequence, own in parts for _ in own], device=self._device)
        reading = Reading(
            lambda _: Answer(prediction, place), tokens, self._noise(tokens), transforms, sequence=names
        )
        return reading.log_clean(where)[:, :-1].double().softmax(-1)

    def _draft(
        self,
        prediction: Prediction,
        sequences: list[_Sequence],
        begins: list[int],
        columns: list[range],
    ) -> None:
        """Draw drafts of some sequences from the outputs at their masks."""
        q = self._laws(prediction, sequences, begins, columns)
        drafts = draw_index(q, _numbers(sequences, columns, _DRAW))
        sizes = [len(own) for own in columns]
        for sequence, own, words, law in zip(
            sequences, columns, drafts.split(sizes), q.split(sizes), strict=True
        ):
            here = _slice(own)
            sequence.drafts = torch.where(sequence.fixed[here], sequence.x[here], words)
            sequence.q = law

    def _show(
        self, sequence: _Sequence, shown: Int[Tensor, " l"], before: dict[int, Tensor], answer: Answer
    ) -> None:
        """Call the watcher of a sequence.

        Args:
            sequence: The sequence after the call.
            shown: Its tokens before the call.
            before: For each word that was read, the tokens from which autoregressive sampling would draw it.
            answer: The answer that covers these words.
        """
        watch, transforms = sequence.request.watch, sequence.request.transforms
        places = torch.arange(len(shown), device=self._device)
        reads = Reads(lambda x, u, _: Reading(lambda _: answer, x, u, transforms), self._noise(shown)[None])
        for column, tokens in before.items():
            reads.ask(tokens[None], self._noise(tokens)[None]).answer((places == column)[None])
        ahead = sum(other.length - other.settled for other in self._sequences)
        share = self._num_written / (self._num_written + ahead + self.awaited * self._regime.length)
        frame = Frame(
            sequence.settled - 1,
            self._regime.hyperschedule.num_steps,
            torch.tensor([sequence.index], device=self._device),
            shown[None],
            sequence.x[None],
            (shown != sequence.x)[None],
            sequence.fixed[None],
            torch.tensor([sequence.settled], device=self._device),
            (sequence.num_evaluations,),
            (sequence.num_computed,),
            self.num_evaluations,
            share,
            reads,
            torch.ones(1, dtype=torch.bool, device=self._device),
        )
        if watch is not None:
            watch(frame)
        reads.end()


def new_engine(
    denoiser: AbstractDenoiser, regime: Regime, step: Step | Speculative, **how: Any
) -> Engine | SpeculativeEngine:
    """The engine of a step, or of speculative sampling; other arguments are those of `Engine`."""
    if isinstance(step, Speculative):
        return SpeculativeEngine(denoiser, regime, step, **how)
    return Engine(denoiser, regime, step, **how)


def _num_accepted(sequences: list[_Sequence], p: Float[Tensor, "n words"]) -> list[int]:
    """For each sequence, how many of its first drafts are accepted, each with the probability `min(1, p / q)`."""
    drafts = torch.cat([sequence.drafts for sequence in sequences])
    if not len(drafts):
        return [0] * len(sequences)
    columns = [sequence.drafted for sequence in sequences]
    sizes = [len(sequence.verified) for sequence in sequences]
    own_p = torch.cat([part[: len(own)] for part, own in zip(p.split(sizes), columns, strict=True)]).gather(
        1, drafts[:, None]
    )
    own_q = torch.cat([sequence.q for sequence in sequences if len(sequence.q)]).gather(1, drafts[:, None])
    fixed = torch.cat([sequence.fixed[_slice(own)] for sequence, own in zip(sequences, columns, strict=True)])
    accepted = fixed | (_numbers(sequences, columns, _ACCEPT) * own_q[:, 0] < own_p[:, 0])
    rest = iter(accepted.tolist())
    return [sum(1 for _ in takewhile(bool, [next(rest) for _ in own])) for own in columns]


def _settled_words(
    sequences: list[_Sequence], p: Float[Tensor, "n words"], counts: list[int]
) -> list[Int[Tensor, " k"]]:
    """The words that a call settles: accepted drafts, and the next word if the sequence has room for it."""
    parts = p.split([len(sequence.verified) for sequence in sequences])
    rows = list(zip(sequences, parts, counts, strict=True))
    having = [row for row in rows if row[2] < len(row[1])]
    drawn = iter(_next_words(having)) if having else iter(())
    words = []
    for sequence, law, count in rows:
        accepted, place = (
            sequence.drafts[:count],
            slice(sequence.settled + count, sequence.settled + count + 1),
        )
        if count < len(law):
            word = torch.where(sequence.fixed[place], sequence.x[place], next(drawn))
            accepted = torch.cat([accepted, word])
        words.append(accepted)
    return words


def _next_words(drawn: list[tuple[_Sequence, Tensor, int]]) -> Int[Tensor, "n 1"]:
    """The next word of each sequence, from its distributions and its number of accepted drafts.

    After a rejected draft it is drawn from the positive part of `p - q`.
    """
    weights, numbers = [], []
    for sequence, law, count in drawn:
        p, stream = law[count], _DRAW
        if count < len(sequence.drafts):
            rest, stream = (p - sequence.q[count]).clamp_min(0), _RESIDUAL
            p = torch.where(rest.sum() > 0, rest, p)  # p and q may differ only by rounding
        weights.append(p)
        numbers.append(sequence.numbers[stream, sequence.settled + count])
    return draw_index(torch.stack(weights), torch.stack(numbers))[:, None]


def _numbers(sequences: list[_Sequence], columns: list[range], stream: int) -> Float[Tensor, " n"]:
    """The random numbers of a stream at some positions of some sequences, one after the other."""
    return torch.cat(
        [sequence.numbers[stream, _slice(own)] for sequence, own in zip(sequences, columns, strict=True)]
    )


def _finished(sequence: _Sequence) -> Finished:
    return Finished(
        sequence.request,
        sequence.index,
        sequence.x[: sequence.length],
        sequence.length if sequence.kept is None else sequence.kept,
        sequence.num_evaluations,
        sequence.num_computed,
    )


def _slice(columns: range) -> slice:
    return slice(columns.start, columns.stop)


def _check_causal(denoiser: AbstractDenoiser, regime: Regime) -> None:
    """Refuse a network whose outputs at words are not those of autoregressive sampling."""
    require_masks(denoiser.process, "Speculative sampling")
    works = (
        "Speculative sampling needs a network that predicts the next token, whose settled positions attend to earlier "
        "ones only, such as one of `hdlm finetune MODEL --to diffusion`; "
    )
    if not regime.hyperschedule.is_autoregressive:
        raise ValueError(
            f"{works}it writes along an autoregressive hyperschedule; got {regime.hyperschedule!r}."
        )
    if denoiser.lookback != 1:
        raise ValueError(
            f"{works}this network is aligned: it predicts a token at the token's own position. Use another algorithm."
        )
    if regime.context == "full":
        raise ValueError(
            f"{works}with context='full' settled positions attend to later ones. Use another algorithm."
        )
    if denoiser.noise_dependence == "sequence":
        raise ValueError(
            f"{works}the outputs of this network depend on the noise of all positions. Use another algorithm."
        )
