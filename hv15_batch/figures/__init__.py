"""Statistics of a log: groups, medians, warnings, tables."""
