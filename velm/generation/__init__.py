"""Greedy decoding, beam search, sampling and constraints: one engine for every decoder."""

from velm.generation.config import GenerationConfig
from velm.generation.engine import Generated, generate

__all__ = ["Generated", "GenerationConfig", "generate"]
