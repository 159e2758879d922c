"""Passages of many requests that share network calls: requests join and leave at any step.

A `WriteRequest` describes the passages that one user asks for. A `SharedWriter` generates the passages of all requests.
Requests whose model, regime and algorithm are equal share an engine, also if their transforms, lengths, prompts and
seeds differ. Engines of one model share network calls. The text of a request does not depend on other requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from typing import TypeVar, final

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser, Guided, Question
from hdlm.generation.correction import correction_regime
from hdlm.generation.passages import Ending, PassageStreamer, Reader, text_of
from hdlm.generation.settings import Settings, planned
from hdlm.generation.text import Passage, has_gaps
from hdlm.generation.write import canvas_of, check_ending
from hdlm.regime import Regime
from hdlm.sampling import (
    Engine,
    EngineRequest,
    Finished,
    Frame,
    Prompt,
    SpeculativeEngine,
    new_engine,
)
from hdlm.sampling.prompt import check_prompt

__all__ = ["SharedWriter", "WriteRequest", "Written"]

_T = TypeVar("_T")


@final
@dataclass(eq=False)
class WriteRequest:
    """The passages that one user asks for. It is checked when it is made.

    Attributes:
        checkpoint: Checkpoint of the model.
        prompt: Text to begin with; if it contains `[MASK]`, a text whose gaps are to be filled in. Or the token ids of
            a whole canvas, None for a gap of one token.
        settings: The settings of generation.
        num: Number of passages, at least 1.
        seed: Seed of all random numbers.
        ending: Where passages may end before the canvas is full.
        stream: Called with the index of a passage and the next piece of its text, as soon as that is certain.
        watch: Called with a `Frame` of one passage after every step in which it may change.
        noise: With a noise fraction in (0, 1], the prompt is a whole text that is corrected: a draft at this noise.

    An error of `stream` or `watch` ends this request, and no other; it is kept in the attribute `failure`.

    Raises:
        ValueError: If a setting is out of range, or the prompt does not fit the canvas or the model.
    """

    checkpoint: Checkpoint
    prompt: str | Sequence[int | None]
    settings: Settings = field(default_factory=Settings)
    num: int = 1
    seed: int = 0
    ending: Ending = field(default_factory=Ending)
    stream: Callable[[int, str], None] | None = None
    watch: Callable[[Frame], None] | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"`num` must be at least 1; got {self.num}.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"`seed` must lie in [0, 2^64); got {self.seed}.")
        tokenizer = self.checkpoint.tokenizer
        self.given, self.regime = canvas_of(self.checkpoint, self.prompt, self.settings, self.noise)
        check_prompt(self.given, self.checkpoint.vocabulary.num_words, self.length, 1)
        check_ending(self.ending, whole=self.is_whole)
        self.reader = Reader(tokenizer, self.ending, self.given_ids, self.length)
        self.step = self.settings.step(self.checkpoint, self.regime.hyperschedule)
        ends = bool(self.ending.strings) or self.ending.at_end_of_text
        self.streamer = None if self.stream is None else PassageStreamer(self.reader, self.stream)
        watched = self.watch is not None or self.streamer is not None
        self.asked = EngineRequest(
            self.settings.transforms(),
            self.reader if ends else None,
            self._after_step if watched else None,
            every_step=False,
        )
        self.failure: Exception | None = None
        self._num_read, self._num_steps = dict[int, int](), dict[int, int]()
        self.engine()  # its checks

    @property
    def is_whole(self) -> bool:
        """Whether the prompt is a whole text, whose gaps are filled in or whose words are corrected."""
        return self.noise is not None or has_gaps(self.prompt)

    @property
    def length(self) -> int:
        """Number of positions on the canvas."""
        return self.regime.length

    @cached_property
    def given_ids(self) -> list[int]:
        """The tokens of the prompt; none for a whole text."""
        row, fixed = self.given.tokens[0], self.given.fixed[0]
        ids: list[int] = [] if self.is_whole else row[fixed].tolist()
        return ids

    @cached_property
    def way(self) -> tuple[Hashable, Regime]:
        """A key that is equal for requests that may share an engine, and the regime of that engine.

        The engine has the canvas of the network if its first positions have the same plan, so that requests of all
        lengths share it.
        """
        settings, own, checkpoint = self.settings, self.regime, self.checkpoint
        if self.noise is None:
            given = len(self.given_ids)
            whole = planned(checkpoint, settings, checkpoint.length, infilling=self.is_whole, given=given)
        else:
            whole = correction_regime(checkpoint, settings, checkpoint.length, self.noise)
        if not _begins_with(whole, own):
            whole = own
        plan = whole.hyperschedule
        rhythm = (plan.num_levels, *plan.settles.tolist()) if plan.has_epochs else plan
        key = (id(checkpoint), self.step, settings.grid, self.noise, plan.length, rhythm)
        return (settings.guidance, *key), whole

    def engine(self) -> Engine | SpeculativeEngine:
        """A new engine for this request and those that are written in the same way.

        Raises:
            ValueError: If the model cannot be sampled along the hyperschedule.
        """
        regime = self.way[1]
        denoiser: AbstractDenoiser = self.checkpoint.denoiser
        if self.settings.guidance:
            denoiser = Guided(denoiser, None, self.settings.guidance)
        return new_engine(denoiser, regime, self.step)

    def canvas(self, length: int) -> Prompt:
        """The given tokens on a canvas of at least as many positions."""
        more = length - self.length
        tokens, fixed = (
            torch.nn.functional.pad(values, (0, more)) for values in (self.given.tokens, self.given.fixed)
        )
        return Prompt(tokens, fixed, is_draft=self.given.is_draft)

    def start_of(self, text: str) -> int:
        """Number of characters at the beginning of a text of this request that belong to the prompt."""
        return _num_common(text, self.prompt_text)

    @cached_property
    def prompt_text(self) -> str:
        """The text of the prompt's tokens."""
        return text_of(self.given_ids, self.checkpoint.tokenizer)

    @property
    def gaps(self) -> list[range]:
        """The runs of positions that are generated, in order."""
        free = [place for place, given in enumerate(self.given.fixed[0].tolist()) if not given]
        known = set(free)
        begins = [place for place in free if place - 1 not in known]
        ends = [place + 1 for place in free if place + 1 not in known]
        return [range(begin, end) for begin, end in zip(begins, ends, strict=True)]

    def gap_texts(self, passage: Passage) -> list[str]:
        """The texts that fill the gaps of a passage."""
        tokenizer, texts = self.checkpoint.tokenizer, []
        for gap in self.gaps:
            before, after = (text_of(passage.tokens[:end], tokenizer) for end in (gap.start, gap.stop))
            texts.append(after[_num_common(after, before) :])
        return texts

    def passage(self, done: Finished, num_evaluations: int) -> Passage:
        """The text of a finished sequence, whose last piece is streamed."""
        ids = done.tokens[: done.length].tolist()
        texts = self.reader.texts
        text = texts[done.sequence] if done.sequence in texts else text_of(ids, self.checkpoint.tokenizer)
        if self.streamer is not None:
            self.streamer.finish(done.sequence, text)
        num_given = int(self.given.fixed.sum())
        costs = done.num_evaluations, done.num_computed
        return Passage(text, tuple(ids), num_given, num_evaluations, *costs)

    def _after_step(self, frame: Frame) -> None:
        """Show a step to the watchers, unless one of them has failed."""
        if self.failure is None:
            self.failure = _attempt(lambda: self._show(frame))

    def _show(self, frame: Frame) -> None:
        """Show a step of each passage."""
        for own in frame.of_each():
            self._show_passage(own)

    def _show_passage(self, frame: Frame) -> None:
        """Show a step of one passage. A passage may start again; then steps that have been shown are left out."""
        index = int(frame.sequence)
        if frame.step < self._num_steps.get(index, 0):
            return
        self._num_steps[index] = frame.step + 1
        if self.watch is not None:
            self.watch(frame)
        count = min(int(frame.settled), self.length)
        if self.streamer is not None and count > self._num_read.get(index, 0):
            self._num_read[index] = count
            self.streamer.read(index, frame.after[0, :count].tolist())


def _attempt(work: Callable[[], _T]) -> _T | Exception:
    """The result of some work, or its error, which ends the request that is the cause, and no other request."""
    try:
        return work()
    except Exception as error:
        return error


def _num_common(text: str, other: str) -> int:
    """Number of characters at the beginning of two texts that are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def _begins_with(whole: Regime, own: Regime) -> bool:
    """Whether the first positions of a regime have the plan of another regime with fewer positions."""
    wide, narrow = whole.hyperschedule, own.hyperschedule
    countdowns = wide.has_epochs and narrow.has_epochs and wide.num_levels == narrow.num_levels
    return countdowns and torch.equal(wide.settles[: narrow.length], narrow.settles)


@final
@dataclass(eq=False)
class _Work:
    """A request in progress.

    Attributes:
        request: The request as it was added.
        waiting: Indices of the passages that wait for a slot.
        running: Indices of the passages that are being generated.
        apart: Whether it has an engine of its own.
    """

    request: WriteRequest
    waiting: deque[int]
    running: set[int] = field(default_factory=set)
    apart: bool = False

    @property
    def key(self) -> Hashable:
        """The key of its engine."""
        return self.request if self.apart else self.request.way[0]


@final
@dataclass(frozen=True)
class Written:
    """A passage of a request is finished, or the request has failed.

    Attributes:
        request: The request of the passage.
        index: Index of the passage in the request.
        passage: The passage; None if the request has failed.
        error: Why the request has failed; None if it has not.
    """

    request: WriteRequest
    index: int
    passage: Passage | None
    error: Exception | None = None


@final
class SharedWriter:
    """Generates the passages of many requests, which share network calls.

    Sequences wait until one of the slots is free. Requests take turns: each gets one slot before any of them gets the
    next one, so a request for many passages does not delay a request for one passage.

    If a step or a network call fails, the requests that took part in it start again, each in an engine of its own that
    shares no call. A seed determines their tokens, so only the request that is the cause fails.

    Args:
        slots: Number of sequences that are generated at a time.

    Attributes:
        num_evaluations: Number of network calls so far; a shared call counts once.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.num_evaluations = slots, 0
        self._engines: dict[Hashable, Engine | SpeculativeEngine] = {}
        self._turns: deque[_Work] = deque()
        self._work: dict[EngineRequest, _Work] = {}

    @property
    def num_running(self) -> int:
        """Number of sequences that are being generated."""
        return sum(len(work.running) for work in self._work.values())

    @property
    def num_waiting(self) -> int:
        """Number of sequences that wait for a slot."""
        return sum(len(work.waiting) for work in self._work.values())

    def add(self, request: WriteRequest) -> None:
        """Add a request, at any time."""
        work = _Work(request, deque(range(request.num)))
        self._work[request.asked] = work
        self._turns.append(work)

    def remove(self, request: WriteRequest) -> None:
        """Stop the work on a request, at any time."""
        work = self._work.pop(request.asked, None)
        if work is None:
            return
        if work in self._turns:
            self._turns.remove(work)
        if work.key in self._engines:
            self._engines[work.key].remove(request.asked)

    @torch.no_grad()
    def advance(self) -> list[Written]:
        """Advance every engine by at least one step, and return what has finished or failed."""
        written = self._fill()
        groups: dict[Hashable, list[Hashable]] = {}
        for key, engine in self._engines.items():
            apart = isinstance(key, WriteRequest)
            groups.setdefault(key if apart else id(engine.denoiser), []).append(key)
        for keys in groups.values():
            written += self._advance(*keys) if len(keys) == 1 else self._advance_together(keys)
        return written

    def _advance_together(self, keys: list[Hashable]) -> list[Written]:
        """Advance engines of one denoiser: by steps that need no network call, then by a step with a shared call."""
        written: list[Written] = []
        asked: dict[Hashable, list[Question]] = {}
        for key in keys:
            while key in self._engines and key not in asked:
                questions = _attempt(self._engines[key].prepare)
                if isinstance(questions, Exception):
                    written += self._restart(key, questions)
                elif questions:
                    asked[key] = questions
                else:
                    written += self._advance(key)
        if not asked:
            return written
        denoiser = self._engines[next(iter(asked))].denoiser
        every = [question for own in asked.values() for question in own]
        prediction = _attempt(lambda: denoiser.predict_many(every))
        if isinstance(prediction, Exception):
            return written + [failed for key in asked for failed in self._restart(key, prediction)]
        self.num_evaluations += 1
        begin = 0
        for key, own in asked.items():
            self._engines[key].answer(prediction, begin)
            begin += sum(question.tokens.numel() for question in own)
            written += self._advance(key)
        return written

    def _advance(self, key: Hashable) -> list[Written]:
        """Advance an engine by one step."""
        engine = self._engines[key]
        before = engine.num_evaluations
        finished = _attempt(engine.advance)
        if isinstance(finished, Exception):
            return self._restart(key, finished)
        self.num_evaluations += engine.num_evaluations - before
        failed = [work.request for work in self._work.values() if work.key == key and work.request.failure]
        written = [self._fail(request, 0, request.failure) for request in failed]
        if not len(engine):
            del self._engines[key]
        done = [sequence for sequence in finished if sequence.request in self._work]
        return written + [self._finish(sequence, engine) for sequence in done]

    def _fail(self, request: WriteRequest, index: int, error: Exception | None) -> Written:
        """End a request whose passage `index` has failed."""
        self.remove(request)
        return Written(request, index, None, error)

    def _finish(self, sequence: Finished, engine: Engine | SpeculativeEngine) -> Written:
        """The passage of a finished sequence."""
        work = self._work[sequence.request]
        passage = _attempt(lambda: work.request.passage(sequence, engine.num_evaluations))
        if isinstance(passage, Exception):
            return self._fail(work.request, sequence.sequence, passage)
        work.running.discard(sequence.sequence)
        if not work.running and not work.waiting:
            del self._work[sequence.request]
        return Written(work.request, sequence.sequence, passage)

    def _restart(self, key: Hashable, error: Exception) -> list[Written]:
        """Let the requests of a failed engine start again, each alone; a request that was alone has failed."""
        del self._engines[key]
        failed = []
        for work in [work for work in self._work.values() if work.running and work.key == key]:
            if work.apart:
                failed.append(self._fail(work.request, min(work.running), error))
                continue
            work.apart = True
            work.waiting.extendleft(sorted(work.running, reverse=True))
            work.running.clear()
            if work not in self._turns:
                self._turns.append(work)
        return failed

    def _fill(self) -> list[Written]:
        """Give free slots to waiting sequences; requests take turns. Returns requests that the engine refuses."""
        failed = []
        room = self.slots - self.num_running
        while room > 0 and self._turns:
            work = self._turns.popleft()
            error = _attempt(partial(self._begin, work))
            if error is not None:
                failed.append(self._fail(work.request, 0, error))
                continue
            room -= 1
            if work.waiting:
                self._turns.append(work)
        return failed

    def _begin(self, work: _Work) -> None:
        """Add the next sequence of a request to its engine."""
        request = work.request
        if work.key not in self._engines:
            self._engines[work.key] = request.engine()
        given, device = request.canvas(request.way[1].length), request.checkpoint.device
        index = work.waiting.popleft()
        self._engines[work.key].add(
            torch.tensor([index], device=device),
            tokens=given.tokens.to(device),
            fixed=given.fixed.to(device),
            is_draft=given.is_draft,
            length=request.length,
            seed=request.seed,
            request=request.asked,
        )
        work.running.add(index)
