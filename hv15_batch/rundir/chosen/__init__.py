"""What a person chose in a run directory: ratings, copies of picks; files that are asked for."""
