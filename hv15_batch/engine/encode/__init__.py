"""Prompts and first frames to embeddings."""
