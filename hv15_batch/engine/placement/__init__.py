"""Where weights are kept while a stage runs."""
