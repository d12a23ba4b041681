"""Embeddings and noise to latents."""
