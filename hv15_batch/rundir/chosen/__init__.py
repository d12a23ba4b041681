"""What a person chose in a run directory: ratings, picks, and files that are asked for."""
