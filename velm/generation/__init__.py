"""Greedy decoding, beam search, sampling and constraints: one engine for every decoder."""

from velm.generation.config import GenerationConfig
from velm.generation.engine import Generated, generate, stream
from velm.generation.likelihood import log_likelihood
from velm.generation.rules import compile_rules

__all__ = ["Generated", "GenerationConfig", "compile_rules", "generate", "log_likelihood", "stream"]
