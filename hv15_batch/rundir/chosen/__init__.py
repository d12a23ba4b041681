"""What a person sees and chooses in a run directory: previews, ratings, picks, asked-for files."""
