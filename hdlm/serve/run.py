"""Run the server with uvicorn."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Sequence

import uvicorn

from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions

__all__ = ["bound_socket", "run_server"]

_HEADER_BYTES = 16_384
"""Largest size of the headers of a request."""


def bound_socket(options: ServeOptions) -> socket.socket:
    """A socket that has the address of a server, and refuses connections until `run_server`.

    Args:
        options: The options with the host and the port.

    Raises:
        ValueError: If the address cannot be used, above all because another program uses the port.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        bound.bind((options.host, options.port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {options.port} of {options.host} is in use: give another --port"
        else:
            message = f"cannot listen on port {options.port} of {options.host}: {error.strerror or error}"
        raise ValueError(message) from error
    return bound


def run_server(models: Sequence[ServedModel], options: ServeOptions, bound: socket.socket) -> None:
    """Serve models until SIGTERM or SIGINT.

    Args:
        models: The models, at least one.
        options: Limits and safety of the server.
        bound: The socket of its address, as returned by `bound_socket`.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        create_app(models, options),
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=_HEADER_BYTES,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(options.shutdown_timeout)),
    )
    uvicorn.Server(config).run([bound])
