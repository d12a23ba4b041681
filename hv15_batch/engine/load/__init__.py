"""Components from files, or made at random."""
