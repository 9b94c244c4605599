"""Training, sampling and evaluation of each model."""
