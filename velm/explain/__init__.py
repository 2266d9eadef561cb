"""What a model looked at: where each word came from, where a sentence is found, which pixels decide."""

from velm.explain.attention import WordMaps, word_maps
from velm.explain.explanation import Explanation, explain
from velm.explain.saliency import saliency_map
from velm.explain.similarity import similarity_maps

__all__ = ["Explanation", "WordMaps", "explain", "saliency_map", "similarity_maps", "word_maps"]
