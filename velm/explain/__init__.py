"""What a model looked at: where each word came from, where a sentence is found, which pixels decide."""

from velm.explain.attention import WordMaps, word_maps

__all__ = ["WordMaps", "word_maps"]
