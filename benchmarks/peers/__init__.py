"""The peers, as they come."""
