"""The only room that opens a run directory: paths, files, lock, log, status, stored settings."""
