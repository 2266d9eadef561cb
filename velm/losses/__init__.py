"""Losses. The package also answers as their registry: `velm.losses.register`, `.build`, `.names`."""

from typing import Any

from velm import registry


def __getattr__(name: str) -> Any:
    return getattr(registry.losses, name)
