"""Ordinary differential equations: velocities, their divergence, solvers."""
