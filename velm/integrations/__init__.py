"""Adaptors for other frameworks; each is a file named after its framework."""
