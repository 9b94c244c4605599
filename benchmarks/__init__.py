"""Benchmarks: each module answers one question and writes one JSON."""
