"""Measures workloads and writes the report."""
