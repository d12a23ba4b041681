"""The rendering of a run's clips: which is next, on which worker, and what a death means."""
