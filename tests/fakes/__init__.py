"""What the tests put in the place of models, runs, machines and browsers."""
