"""Compositional understanding: accuracy on captions against hard negatives."""
