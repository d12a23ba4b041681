"""Where weights are: found, fetched, checked, known by content."""
