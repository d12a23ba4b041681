"""Executors: the protocol between parent and worker, and the worker of this machine."""
