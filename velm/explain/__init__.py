"""Explanations: attention maps of words, similarity maps of texts, saliency of pixels."""

from velm.explain.attention import WordMaps, word_maps
from velm.explain.explanation import Explanation, explain
from velm.explain.saliency import saliency_map
from velm.explain.similarity import similarity_maps

__all__ = ["Explanation", "WordMaps", "explain", "saliency_map", "similarity_maps", "word_maps"]
