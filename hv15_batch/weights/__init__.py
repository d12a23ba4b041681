"""Finds, fetches, checks and identifies weights."""
