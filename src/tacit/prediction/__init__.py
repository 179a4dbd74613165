"""Prediction services, one file each."""
