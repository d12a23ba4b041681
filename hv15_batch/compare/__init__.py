"""Two runs of one manifest side by side: quality first, then speed and memory."""
