"""Keys, limits of size, request ids, headers and the log: around all routes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any, final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hdlm.serve.metrics import ServerMetrics
from hdlm.serve.options import ServeOptions

__all__ = ["Guard", "error_answer", "log_event"]

_LOG = logging.getLogger("hdlm.serve")
_OPEN = frozenset({"/", "/health", "/ready"})
"""Routes that need no key, as well as the files of the page."""
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every answer."""


def log_event(event: str, **values: Any) -> None:
    """Write a line of JSON to the log."""
    _LOG.info(json.dumps({"time": round(time.time(), 3), "event": event, **values}))


def error_answer(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in the format of OpenAI."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


@final
class _BodyTooLargeError(Exception):
    """The body of a request is larger than allowed."""


@final
class Guard:
    """Checks every request, and adds headers to every answer.

    Args:
        app: The application behind it.
        options: Key, and limit of the body.
        metrics: Counts requests by route.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: ServerMetrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, begin = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = name
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = name
                for header, value in _HEADERS.items():
                    added.setdefault(header, value)
            await send(message)

        try:
            async with asyncio.timeout(2 * self._options.request_timeout):
                await self._checked(scope, headers, receive, answer)
        except TimeoutError:  # the client sends no request, or does not read its answer
            log_event("stalled", id=name)
            if not status:
                await error_answer(408, "The request did not arrive in time.", code="timeout")(
                    scope, receive, answer
                )
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status or 499)).inc()
            seconds = round(time.monotonic() - begin, 4)
            log_event(
                "request", id=name, method=scope["method"], route=route, status=status or 499, seconds=seconds
            )

    async def _checked(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Call the application if key and size are right."""
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        size, begun = 0, False
        limit = self._options.max_body

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise _BodyTooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if size > limit and not begun:
                return  # the application's own answer to a body that it could not read
            begun = True
            await send(message)

        with contextlib.suppress(_BodyTooLargeError):
            await self._app(scope, limited, noted)
        if size > limit and not begun:
            await self._too_large()(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        """The answer to a request without the key or with too large a body."""
        if not (path in _OPEN or path.startswith("/static/")) and not self._has_key(headers):
            return error_answer(
                401,
                "This server needs a key: send the header `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._options.max_body):
            return self._too_large()
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self._options.api_key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._options.api_key.encode())
        return right and scheme.lower() == "bearer"

    def _too_large(self) -> JSONResponse:
        message = f"The request has more than {self._options.max_body} bytes, the limit of this server."
        return error_answer(413, message, code="request_too_large", headers={"connection": "close"})


def allowed_hosts(options: ServeOptions) -> Iterable[str]:
    """The values of the header Host: those of this machine only, if the server is for this machine only.

    A page of another site, whose name has been made to point to this machine, is refused.
    """
    return ["localhost", "127.0.0.1", "::1", "[::1]", options.host] if options.is_loopback else ["*"]
