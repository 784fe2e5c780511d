"""Measurements, run by hand: `python -m tests.benchmarks`. pytest runs them at the smallest sizes."""
