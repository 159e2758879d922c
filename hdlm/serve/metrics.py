"""Prometheus metrics of a server."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["ServerMetrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@final
class ServerMetrics:
    """The metrics of one server.

    Args:
        slots: Number of passages that are generated at a time.
    """

    def __init__(self, slots: int) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "hdlm_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "hdlm_request_seconds", "Seconds of a request for text", buckets=_SECONDS, registry=registry
        )
        self.first_block = Histogram(
            "hdlm_first_block_seconds", "Seconds until text is settled", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("hdlm_generated_tokens", "Tokens that were generated", registry=registry)
        self.evaluations = Counter("hdlm_evaluations", "Network calls", registry=registry)
        self.tokens_per_forward = Histogram(
            "hdlm_tokens_per_forward",
            "Tokens of a passage per network call",
            buckets=(0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.batch_fill = Histogram(
            "hdlm_batch_fill",
            "Share of the slots that a step uses",
            buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1),
            registry=registry,
        )
        self.requests_open = Gauge("hdlm_requests_open", "Requests that run or wait", registry=registry)
        self.passages_running = Gauge("hdlm_passages_running", "Passages being generated", registry=registry)
        self.passages_waiting = Gauge(
            "hdlm_passages_waiting", "Passages that wait for a slot", registry=registry
        )
        Gauge("hdlm_slots", "Passages that are generated at a time", registry=registry).set(slots)

    def text(self) -> bytes:
        """All metrics in the format of Prometheus."""
        return generate_latest(self.registry)
