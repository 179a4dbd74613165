"""Models, data and the local work of a participant."""
