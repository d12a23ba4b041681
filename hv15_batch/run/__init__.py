"""One run in the parent: prepare, loop, stop, report."""
