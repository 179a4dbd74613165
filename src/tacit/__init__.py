"""Measure what a neural network leaks; train, share and serve networks without leaking."""

__version__ = "0.1.0"
