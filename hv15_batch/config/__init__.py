"""Settings: what may be set, what is refused, and how typed words become a `Config`."""
