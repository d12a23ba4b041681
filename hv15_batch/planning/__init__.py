"""Clips compared with the log: what is to be done."""
