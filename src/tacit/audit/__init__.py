"""Attacks paired with protections, and what came of it."""
