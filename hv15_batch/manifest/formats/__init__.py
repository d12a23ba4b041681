"""Files of every format as records: syntax only; what a cell may hold is for `manifest.rows`."""
