"""Attention kernels of the Hugging Face hub: fetched by `prefetch`, then used without network."""
