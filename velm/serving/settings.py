"""The settings of a server, and who may use it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from velm.errors import ServingError

__all__ = ["Settings", "is_loopback"]


@dataclass(frozen=True)
class Settings:
    """Limits and access of a server.

    Args:
        host, port: where it listens.
        token: that each request has to bear; None: none, which needs a loopback host or `no_token`.
        no_token: anyone who reaches the port may use the server.
        name: of the model, as answers state it.
        max_body: bytes of a request's body.
        max_pixels: width times height of an image, read from its header before it is decoded.
        max_text: characters of a text.
        max_batch: inputs of one call of the model.
        max_wait_ms: longest time that an input waits for others that are being decoded, milliseconds.
        queue: inputs that are accepted and not yet answered; requests beyond are answered 503.
        drain_s: seconds that accepted requests have to finish after SIGTERM.

    Raises:
        ServingError: a limit is too small, or anyone on the network could use the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    no_token: bool = False
    name: str = "model"
    max_body: int = 32 << 20
    max_pixels: int = 32_000_000
    max_text: int = 8192
    max_batch: int = 32
    max_wait_ms: float = 5.0
    queue: int = 256
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_body", "max_pixels", "max_text", "max_batch", "queue"):
            if getattr(self, name) < 1:
                raise ServingError(f"{name} {getattr(self, name)} is too small; it is at least 1.")
        for name in ("max_wait_ms", "drain_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ServingError(f"{name} {getattr(self, name)} is not a time; it is at least 0.")
        if self.token is not None and (not self.token.strip() or not self.token.isascii()):
            raise ServingError(
                "The token is empty or not ASCII. Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is None and not self.no_token and not is_loopback(self.host):
            raise ServingError(
                f"The host {self.host} can be reached from other machines, and there is no token: give --token (or set "
                "VELM_TOKEN), or --no_token if anyone who reaches the port may use the model, or listen on 127.0.0.1."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
