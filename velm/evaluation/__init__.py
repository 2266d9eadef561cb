"""Metrics of a model on a split: predictions, the metrics of metrics.json, and bootstrap intervals."""
