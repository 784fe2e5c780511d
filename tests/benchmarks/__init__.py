"""Measurements, run by hand: `python -m tests.benchmarks`. pytest collects none of them."""
