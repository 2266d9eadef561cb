"""Averages of checkpoints of one model: weighted, WiSE-FT between two, greedy soups of many."""
