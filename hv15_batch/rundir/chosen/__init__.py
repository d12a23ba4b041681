"""What a person chose in a run directory: ratings, copies of picks, and files that are asked for."""
