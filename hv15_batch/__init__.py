"""Unattended, measured, reproducible batch rendering with HunyuanVideo-1.5."""

__version__ = "0.1.0"
