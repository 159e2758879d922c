"""One thread computes; jobs connect it with the event loop.

The event loop puts jobs into the inbox of the worker. The worker adds them to its `SharedWriter` between two steps, and
sends events back: pieces of text, frames, finished passages and failures.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from hdlm.generation.company import SharedWriter, WriteRequest
from hdlm.generation.text import Passage
from hdlm.sampling import Frame, Trace
from hdlm.serve.metrics import ServerMetrics

__all__ = ["Job", "JobEvent", "QueueFullError", "Worker"]

_IDLE = 0.5
"""Seconds that an idle worker waits for a job before it checks whether it should end."""


class QueueFullError(Exception):
    """The server has as many requests as it takes."""


@final
@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        kind: A piece of settled text, the frame of a step, a finished passage, a failure, or the end of the server.
        prompt: Index of the prompt in the job.
        index: Index of the passage of the prompt.
        value: The text, the frame, the passage or the error.
    """

    kind: Literal["text", "frame", "passage", "failed", "closed"]
    prompt: int = 0
    index: int = 0
    value: Any = None


@final
@dataclass(eq=False)
class Job:
    """The passages of one request to the server.

    Attributes:
        requests: A request to the writer for each prompt.
        traces: A trace for each prompt, or none.
        events: The events of the job, in order.
        begin: Time of its arrival.
        first_text: Time at which text of it was first settled.
        num_left: Number of passages that are not finished.
    """

    requests: list[WriteRequest]
    traces: list[Trace]
    events: asyncio.Queue[JobEvent] = field(default_factory=asyncio.Queue)
    begin: float = field(default_factory=time.monotonic)
    first_text: float | None = None
    num_left: int = 0

    def __post_init__(self) -> None:
        self.num_left = sum(request.num for request in self.requests)

    @property
    def time_to_first_block(self) -> float | None:
        """Seconds from its arrival to the first settled text."""
        return None if self.first_text is None else self.first_text - self.begin


@final
class Worker:
    """The thread that computes.

    Args:
        slots: Number of passages that are generated at a time.
        limit: Largest number of open jobs.
        metrics: The metrics that it updates.
    """

    def __init__(self, slots: int, limit: int, metrics: ServerMetrics) -> None:
        self._writer, self._limit, self._metrics = SharedWriter(slots), limit, metrics
        self._inbox: queue.SimpleQueue[tuple[Literal["add", "remove", "end"], Job | None]] = (
            queue.SimpleQueue()
        )
        self._open: set[Job] = set()
        self._owner: dict[WriteRequest, tuple[Job, int]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alive = False

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._alive

    @property
    def num_open(self) -> int:
        """Number of jobs that run or wait."""
        return len(self._open)

    def start(self) -> None:
        """Start the thread; called from the event loop."""
        self._loop, self._alive = asyncio.get_running_loop(), True
        self._thread = threading.Thread(target=self._run, name="hdlm-worker", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        """Cancel all jobs and wait for the end of the thread."""
        self._inbox.put(("end", None))
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            QueueFullError: If there are too many.
        """
        if len(self._open) >= self._limit or not self._alive:
            raise QueueFullError
        self._open.add(job)
        self._metrics.requests_open.set(len(self._open))
        self._inbox.put(("add", job))

    def release(self, job: Job) -> None:
        """Forget a job, and stop the work on it if it is not finished."""
        self._open.discard(job)
        self._metrics.requests_open.set(len(self._open))
        if job.num_left:
            self._inbox.put(("remove", job))

    # -- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Take jobs and advance them until the end."""
        try:
            while self._receive():
                if self._writer.num_running or self._writer.num_waiting:
                    self._advance()
        finally:
            self._alive = False
            for job in list(self._open):
                self.send(job, JobEvent("closed"))

    def _receive(self) -> bool:
        """Take everything from the inbox, and wait for it if there is no work; False at the end."""
        busy = bool(self._writer.num_running or self._writer.num_waiting)
        try:
            order, job = self._inbox.get(block=not busy, timeout=None if busy else _IDLE)
        except queue.Empty:
            return True
        while True:
            if order == "end":
                return False
            if job is not None:
                (self._add if order == "add" else self._remove)(job)
            try:
                order, job = self._inbox.get_nowait()
            except queue.Empty:
                return True

    def _add(self, job: Job) -> None:
        for place, request in enumerate(job.requests):
            self._owner[request] = job, place
            self._writer.add(request)

    def _remove(self, job: Job) -> None:
        for request in job.requests:
            self._owner.pop(request, None)
            self._writer.remove(request)
        self._show_load()

    def _show_load(self) -> None:
        """Update the metrics of running and waiting passages."""
        self._metrics.passages_running.set(self._writer.num_running)
        self._metrics.passages_waiting.set(self._writer.num_waiting)

    def _advance(self) -> None:
        """One step of everything."""
        writer, metrics = self._writer, self._metrics
        before = writer.num_evaluations
        written = writer.advance()
        metrics.evaluations.inc(writer.num_evaluations - before)
        metrics.batch_fill.observe((writer.num_running + len(written)) / writer.slots)
        self._show_load()
        for one in written:
            if one.request not in self._owner:
                continue
            job, place = self._owner[one.request]
            if one.passage is None:
                self._remove(job)
                self.send(job, JobEvent("failed", place, one.index, one.error))
                continue
            self._count(one.passage)
            job.num_left -= 1
            self.send(job, JobEvent("passage", place, one.index, one.passage))
            if not job.num_left:
                self._remove(job)

    def _count(self, passage: Passage) -> None:
        count = len(passage.tokens) - passage.given
        self._metrics.tokens.inc(count)
        if passage.evaluations:
            self._metrics.tokens_per_forward.observe(count / passage.evaluations)

    def send(self, job: Job, event: JobEvent) -> None:
        """Send an event from the thread to the event loop."""
        if event.kind == "text" and job.first_text is None:
            job.first_text = time.monotonic()
            self._metrics.first_block.observe(job.first_text - job.begin)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(job.events.put_nowait, event)


def job_of(
    worker: Worker,
    build: Callable[..., WriteRequest],
    prompts: Sequence[str | Sequence[int | None]],
    *,
    alternatives: int | None,
    frame: Callable[[Trace, Frame, WriteRequest], Any] | None,
) -> Job:
    """A job that sends its text to its events, for one or more prompts.

    Args:
        worker: The worker that will compute it.
        build: Makes the request for a prompt from its keyword arguments `stream` and `watch`.
        prompts: The prompts of the job.
        alternatives: Number of likeliest words of each change to record; None to record nothing.
        frame: Makes the value of a frame event after each step; None for no such events.

    Raises:
        ValueError: If a request is not valid.
    """
    job = Job([], [])
    for place, prompt in enumerate(prompts):
        job.requests.append(_request(worker, job, place, prompt, build, alternatives, frame))
    job.num_left = sum(request.num for request in job.requests)
    return job


def _request(
    worker: Worker,
    job: Job,
    place: int,
    prompt: str | Sequence[int | None],
    build: Callable[..., WriteRequest],
    alternatives: int | None,
    frame: Callable[[Trace, Frame, WriteRequest], Any] | None,
) -> WriteRequest:
    """The request for one prompt of a job."""
    texts: dict[int, str] = {}

    def stream(index: int, piece: str) -> None:
        request = job.requests[place]
        text = texts[index] = texts.get(index, "") + piece
        written = text[max(request.start_of(text), len(text) - len(piece)) :]
        if written:
            worker.send(job, JobEvent("text", place, index, written))

    def watch(seen: Frame) -> None:
        trace = job.traces[place]
        if frame is None:
            trace(seen)
        else:
            worker.send(
                job, JobEvent("frame", place, int(seen.sequence[0]), frame(trace, seen, job.requests[place]))
            )

    request = build(prompt=prompt, stream=stream, watch=None if alternatives is None else watch)
    if alternatives is not None:
        mask_id = request.checkpoint.vocabulary.mask_id
        job.traces.append(Trace(mask_id, alternatives=alternatives))
    return request
