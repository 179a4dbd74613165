"""Carriers of conversations."""
