"""Run the server with uvicorn."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import uvicorn

from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions

__all__ = ["run_server"]

_HEADER_BYTES = 16_384
"""Largest size of the headers of a request."""


def run_server(models: Sequence[ServedModel], options: ServeOptions) -> None:
    """Serve models until SIGTERM or SIGINT.

    Args:
        models: The models, at least one.
        options: Host, limits and safety.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        create_app(models, options),
        host=options.host,
        port=options.port,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=_HEADER_BYTES,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(options.shutdown_timeout)),
    )
    uvicorn.Server(config).run()
