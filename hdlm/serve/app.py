"""The routes of the server."""

from __future__ import annotations

import asyncio
import json
import re
import reprlib
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, final, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hdlm import __version__
from hdlm.generation.company import WriteRequest
from hdlm.generation.recording import document_of, frame_of
from hdlm.generation.text import Passage
from hdlm.sampling import Frame, Trace
from hdlm.serve.guard import Guard, allowed_hosts, error_answer, log_event
from hdlm.serve.jobs import Job, JobEvent, QueueFullError, Worker, job_of
from hdlm.serve.metrics import ServerMetrics
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions
from hdlm.serve.schema import (
    ChatRequest,
    CompletionRequest,
    CorrectRequest,
    ErrorAnswer,
    InfillRequest,
    ModelEntry,
    ModelList,
    TextAnswer,
)
from hdlm.serve.translate import BadRequestError, Plan, client_plan
from hdlm.strict_config import did_you_mean
from hdlm.view.page import static_files

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
_TextBody = CompletionRequest | ChatRequest | CorrectRequest | InfillRequest
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "A field cannot be used; `param` names it."},
    401: {"model": ErrorAnswer, "description": "The key is missing or wrong."},
    404: {"model": ErrorAnswer, "description": "There is no such model."},
    408: {"model": ErrorAnswer, "description": "The request took longer than the server allows."},
    422: {
        "model": ErrorAnswer,
        "description": "The computation of this request failed; others are unaffected.",
    },
    413: {"model": ErrorAnswer, "description": "The request is too large."},
    429: {"model": ErrorAnswer, "description": "The server has too many requests; see Retry-After."},
}


def create_app(models: Sequence[ServedModel], options: ServeOptions) -> FastAPI:
    """The server as an ASGI application.

    Args:
        models: The models, at least one; the first is the default of requests.
        options: Limits and safety of the server.
    """
    metrics = ServerMetrics(options.slots)
    worker = Worker(options.slots, options.queue, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for model in models:
            await asyncio.to_thread(getattr, model, "supported")
        worker.start()
        yield
        await worker.end()

    app = FastAPI(
        title="hdlm",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.worker, app.state.metrics, app.state.options = worker, metrics, options
    app.state.models = {model.name: model for model in models}
    _add_errors(app)
    _add_plain_routes(app)
    _add_text_routes(app)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts(options)), www_redirect=False)
    app.add_middleware(Guard, options=options, metrics=metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    """Answer every error in the format of OpenAI, without paths and traces."""

    async def bad_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, BadRequestError)
        return error_answer(error.status, error.message, param=error.param, code=error.code)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if "json" not in request.headers.get("content-type", ""):
            return error_answer(400, "Send a JSON object, with the header `Content-Type: application/json`.")
        errors = error.errors()
        alike = (each for each in errors if each["loc"][:2] == errors[0]["loc"][:2])
        deepest = max(alike, key=lambda each: len(each["loc"]))  # in the type of a union that fits best
        if deepest["type"] == "json_invalid":
            reason = f"{deepest['ctx']['error']}, at character {deepest['loc'][-1]}"
            return error_answer(400, f"The body is not valid JSON: {reason}.")
        parts = map(str, deepest["loc"][1:])
        place = [part for part in parts if not part.startswith(("function", "constrained", "list["))]
        message = _invalid_field(request, ".".join(place), deepest)
        return error_answer(400, message, param=place[0] if place else None)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers, message = dict(error.headers or {}), str(error.detail)
        if isinstance(error.__cause__, UnicodeDecodeError):
            message = f"The body is not UTF-8: {error.__cause__.reason} at byte {error.__cause__.start}."
        elif isinstance(error.__cause__, RecursionError):
            message = "The body has too many nested lists or objects."
        return error_answer(error.status_code, message, headers=headers)

    async def fault(request: Request, error: Exception) -> Response:
        log_event("fault", id=request.state.request_id, error=repr(error))
        return error_answer(500, "The server failed; its log has the reason under this request id.")

    app.add_exception_handler(BadRequestError, bad_request)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, fault)


def _invalid_field(request: Request, field: str, error: Mapping[str, Any]) -> str:
    """The message for a field that the schema of a request does not accept; an empty name is the whole body."""
    if error["type"] == "extra_forbidden":
        if "." in field:
            return f"There is no field `{field}`: leave it out."
        known = get_type_hints(request.scope["endpoint"])["body"].model_fields
        hint = did_you_mean(field, known) or f"; the fields are {', '.join(known)}."
        return f"There is no field `{field}`{hint}"
    if error["type"] == "missing":
        return f"The field `{field}` is missing." if field else "The body is missing: send a JSON object."
    expected = re.sub(r"^\w+ should ", "must ", error["msg"]) if field else "must be a JSON object"
    return f"{f'`{field}`' if field else 'The body'} {expected}; got {reprlib.repr(error['input'])}."


def _add_plain_routes(app: FastAPI) -> None:
    """Health, metrics, the models and the page."""

    @app.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests are accepted", responses={503: {"model": ErrorAnswer}})
    async def ready() -> Response:
        worker: Worker = app.state.worker
        if worker.alive:
            return JSONResponse({"status": "ready", "requests_open": worker.num_open})
        return error_answer(503, "The server does not compute.")

    @app.get(
        "/metrics", response_class=PlainTextResponse, summary="Prometheus metrics", responses=_errors(401)
    )
    async def metrics() -> Response:
        return PlainTextResponse(app.state.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=ModelList, summary="The models", responses=_errors(401))
    async def models() -> ModelList:
        return ModelList(data=[_entry(model) for model in app.state.models.values()])

    @app.get(
        "/v1/models/{name:path}", response_model=ModelEntry, summary="A model", responses=_errors(401, 404)
    )
    async def model(name: str) -> ModelEntry:
        if name not in app.state.models:
            raise BadRequestError(f"There is no model {name!r}.", "model", 404, "model_not_found")
        return _entry(app.state.models[name])

    app.mount("/static/replay", StaticFiles(directory=static_files()), name="replay")
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_STATIC / "index.html")


def _add_text_routes(app: FastAPI) -> None:
    """Completions, chats, gaps and corrections."""
    answers: dict[int | str, dict[str, Any]] = {200: {"model": TextAnswer, "content": _STREAM}, **_ERRORS}

    @app.post("/v1/completions", responses=answers, summary="Continue a prompt, or fill in the middle")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _write(app, body, request)

    @app.post("/v1/chat/completions", responses=answers, summary="Continue a chat")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _write(app, body, request)

    @app.post("/v1/infill", responses=answers, summary="Fill in the gaps of a text")
    async def infill(body: InfillRequest, request: Request) -> Response:
        return await _write(app, body, request)

    @app.post("/v1/correct", responses=answers, summary="Replace the wrong words of a text")
    async def correct(body: CorrectRequest, request: Request) -> Response:
        return await _write(app, body, request)


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: _ERRORS[code] for code in codes}


def _entry(model: ServedModel) -> ModelEntry:
    return ModelEntry(
        id=model.name,
        created=model.created,
        max_model_len=model.checkpoint.length,
        hdlm_algorithms=model.supported,
        hdlm_correcting=model.correcting,
        hdlm_chat=model.chat_template is not None,
    )


async def _write(app: FastAPI, body: _TextBody, request: Request) -> Response:
    """Answer a request for text."""
    worker: Worker = app.state.worker
    options: ServeOptions = app.state.options
    if worker.num_open >= options.queue:
        return _busy()
    plan = await asyncio.to_thread(client_plan, body, app.state.models, options)
    if options.log_prompts:
        log_event("prompt", id=request.state.request_id, prompts=plan.prompts)
    job = await asyncio.to_thread(_job, worker, plan)
    try:
        worker.submit(job)
    except QueueFullError:
        return _busy()
    if body.stream:
        stream = _stream(app, plan, job, request)
        return _EventStream(stream, partial(_release, app, job))
    passages: dict[tuple[int, int], Passage] = {}
    try:
        async for event in _events(app, job, request):
            if event.kind == "passage":
                passages[event.prompt, event.index] = event.value
    finally:
        _release(app, job)
    return JSONResponse(plan.answer(job, passages))


def _job(worker: Worker, plan: Plan) -> Job:
    """The job of a plan."""
    places = iter(range(len(plan.prompts)))

    def build(**how: Any) -> WriteRequest:
        return plan.request(next(places), **how)

    frame = partial(_frame, plan) if plan.frames else None
    return job_of(worker, build, plan.prompts, alternatives=plan.alternatives, frame=frame)


def _frame(plan: Plan, trace: Trace, seen: Frame, request: WriteRequest) -> dict[str, Any]:
    """The frame of a step; the first one of a passage has the document that frames are added to."""
    index = int(seen.sequence[0])
    new = index not in trace.start
    changes = trace.record(seen)
    read = request.checkpoint.tokenizer.piece
    costs = {"evaluations": seen.evaluations[0], "computed": seen.computed[0]}
    frame = frame_of(changes, read, step=seen.step, **costs) | {
        "settled": min(int(seen.settled[0]), request.length)
    }
    if not new:
        return frame
    alone = Trace(trace.mask_id, alternatives=trace.alternatives)
    alone.start = {index: trace.start[index][: request.length]}
    alone.given = {index: [place for place in trace.given[index] if place < request.length]}
    alone.evaluations, alone.computed = {index: 0}, {index: 0}
    document = document_of(
        alone,
        request.regime.hyperschedule,
        request.checkpoint.tokenizer,
        title=plan.model.name,
        seed=plan.seed,
        settings=asdict(request.settings),
        noise=request.noise,
    )
    return frame | {"document": replace(document, changes=()).to_dict()}


def _busy() -> JSONResponse:
    return error_answer(
        429,
        "The server has as many requests as it takes: try again later.",
        code="busy",
        headers={"retry-after": "1"},
    )


def _release(app: FastAPI, job: Job) -> None:
    """End a job, in whatever state it is."""
    app.state.worker.release(job)
    app.state.metrics.latency.observe(time.monotonic() - job.begin)


async def _events(app: FastAPI, job: Job, request: Request) -> AsyncIterator[JobEvent]:
    """The events of a job until all passages are finished.

    Raises:
        BadRequestError: If the request failed, took too long, or the client has gone.
    """
    left = sum(part.num for part in job.requests)
    gone = asyncio.ensure_future(_disconnected(request))
    event: asyncio.Future[JobEvent] | None = None
    end = job.begin + app.state.options.request_timeout
    try:
        while left:
            event = asyncio.ensure_future(job.events.get())
            await asyncio.wait(
                {event, gone}, timeout=max(end - time.monotonic(), 0), return_when=asyncio.FIRST_COMPLETED
            )
            if not event.done():
                if gone.done():
                    raise BadRequestError("The client has closed the connection.", status=499)
                seconds = app.state.options.request_timeout
                raise BadRequestError(
                    f"The request took longer than {seconds:g} seconds.", status=408, code="timeout"
                )
            happened = event.result()
            if happened.kind == "failed":
                raise _failure(happened.value, request.state.request_id)
            if happened.kind == "closed":
                raise BadRequestError("The server is shutting down.", status=503, code="shutting_down")
            left -= happened.kind == "passage"
            yield happened
    finally:
        gone.cancel()
        if event is not None:
            event.cancel()


def _failure(error: Exception, request_id: str) -> BadRequestError:
    """The answer to a request that failed while it was computed.

    Its seed determines the computation, so that the same request would fail again: it has no status for a retry.
    """
    if isinstance(error, ValueError):
        log_event("failed", id=request_id, error=repr(error))
        return BadRequestError(str(error))
    trace = "".join(traceback.format_exception(error))
    log_event("failed", id=request_id, error=repr(error), trace=trace)
    message = (
        f"The computation of this request failed; the log has the reason under the request id {request_id}."
    )
    return BadRequestError(message, status=422, code="computation_failed")


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(app: FastAPI, plan: Plan, job: Job, request: Request) -> AsyncGenerator[str, None]:
    """The chunks of an answer as server-sent events."""
    passages: dict[tuple[int, int], Passage] = {}
    try:
        for chunk in plan.first_chunks(job):
            yield _line(chunk)
        async for event in _events(app, job, request):
            if event.kind == "passage":
                passages[event.prompt, event.index] = event.value
            for chunk in plan.chunks(job, event):
                yield _line(chunk)
        if plan.usage:
            yield _line(plan.usage_chunk(job, passages))
        yield "data: [DONE]\n\n"
    except BadRequestError as error:
        body: Any = error_answer(error.status, error.message, param=error.param, code=error.code).body
        yield f"data: {bytes(body).decode()}\n\n"


@final
class _EventStream(StreamingResponse):
    """Server-sent events of a job, which ends with the response: also if the client has gone or does not read.

    Args:
        events: The events in order.
        release: Ends the job, in whatever state it is.
    """

    def __init__(self, events: AsyncGenerator[str, None], release: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._events, self._release = events, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
            await self._events.aclose()


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False)}\n\n"
