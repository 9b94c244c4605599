"""Compiled engines that carry small perceptrons through whole paths."""
