"""Greedy search, beam search, sampling and constraints: one engine for every decoder."""

from velm.generation.config import GenerationConfig
from velm.generation.constraints import Constraints
from velm.generation.engine import Generated, generate, stream
from velm.generation.likelihood import log_likelihood

__all__ = ["Constraints", "Generated", "GenerationConfig", "generate", "log_likelihood", "stream"]
