"""Sums over all pairs of B images and B texts, computed tile by tile: no B x B matrix is stored, on any rank."""
