"""Small pictures of a clip while it denoises."""
