"""Roles, conversations between them, what each sees, and what goes wrong."""
