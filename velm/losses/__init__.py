"""Losses: how well pictures and sentences match, and how probable the sentence is."""
