"""Two-party computation."""
