"""What a log says in figures: groups, medians, warnings, tables."""
