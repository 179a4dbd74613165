"""Differential privacy: mechanisms and accounting."""
