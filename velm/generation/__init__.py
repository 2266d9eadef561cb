"""Greedy decoding, beam search, sampling and constraints: one engine for every decoder."""

from velm.generation.config import GenerationConfig
from velm.generation.engine import Generated, generate
from velm.generation.likelihood import log_likelihood

__all__ = ["Generated", "GenerationConfig", "generate", "log_likelihood"]
