"""The peers, unmodified."""
