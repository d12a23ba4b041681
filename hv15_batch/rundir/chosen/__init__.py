"""What a person chose in a run directory: ratings, and copies of picks."""
