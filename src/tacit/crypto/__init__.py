"""Cryptographic cores: pure functions, no input or output."""
