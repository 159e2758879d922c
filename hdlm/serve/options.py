"""Host, limits and safety of a server."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import final

__all__ = ["ServeOptions"]


@final
@dataclass(frozen=True)
class ServeOptions:
    """The options of a server.

    Attributes:
        host: Address to listen on; any but a loopback address needs a key or `no_auth`.
        port: Port to listen on; 0 for a free one.
        api_key: Key that clients must send; the environment variable HDLM_API_KEY is safer, as other users see
            arguments.
        no_auth: Whether to require no key, even if other machines can reach the server.
        slots: Number of passages that are generated at a time.
        queue: Largest number of requests that run or wait; others get status 429.
        max_body: Largest size of a request in bytes.
        max_n: Largest number of passages in a request, over all its prompts.
        max_steps: Largest number of steps of a position.
        request_timeout: Seconds after which a request is cancelled; after twice that time, the server closes the
            connection of a client that has not sent its request or not read its answer.
        shutdown_timeout: Seconds in which running requests may finish after SIGTERM.
        log_prompts: Whether to write prompts to the log.

    Raises:
        ValueError: If a number is out of range, or the server would be open to other machines without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    no_auth: bool = False
    slots: int = 16
    queue: int = 128
    max_body: int = 1_000_000
    max_n: int = 32
    max_steps: int = 1024
    request_timeout: float = 300.0
    shutdown_timeout: float = 10.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "queue", "max_body", "max_n", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"`port` must lie in [0, 65535]; got {self.port}.")
        for name in ("request_timeout", "shutdown_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a positive number of seconds; got {getattr(self, name)}.")
        if self.api_key == "":
            raise ValueError("`api_key` must not be empty.")
        if not (self.is_loopback or self.api_key or self.no_auth):
            raise ValueError(
                f"With `host` {self.host!r} other machines can use the server: set `api_key`, or `no_auth` to "
                "let everybody use it."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
