"""Sums over all pairs of B images and B texts, made tile by tile: nothing B x B exists, on one device or on many."""
