"""Plots as files without a browser: SVG, PNG and CSV."""
