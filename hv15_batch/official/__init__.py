"""Tencent's generate.py: what it can do, the command of a clip, and what it says."""
