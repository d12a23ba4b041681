<<<<<<< HEAD
"""What a person chose in a run directory: ratings, picks, and files that are asked for."""
=======
"""What a person chose in a run directory: ratings, copies of picks; files that are asked for."""
>>>>>>> view
