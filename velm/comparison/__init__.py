"""Runs side by side: configs, metrics, curves, and paired differences of their evaluations."""
