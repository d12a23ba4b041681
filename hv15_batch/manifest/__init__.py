"""A file of prompts becomes checked rows, and rows become clips."""
