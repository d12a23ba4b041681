"""All settings, their checks, and the way from typed words to a `Config`."""
