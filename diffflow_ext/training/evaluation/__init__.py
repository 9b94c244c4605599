"""Sampling and evaluation of runs."""
