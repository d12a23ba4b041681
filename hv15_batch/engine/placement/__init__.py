"""Where weights live while a stage runs."""
