"""Clips compared with the log: what is left to do."""
