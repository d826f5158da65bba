"""Benchmarks: a causal model, its data and its encoding, and nothing else."""
