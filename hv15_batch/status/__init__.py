"""Progress, for whoever looks in."""
