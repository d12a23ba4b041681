"""Files of every format as records. It parses syntax; `manifest.rows` checks the cells."""
