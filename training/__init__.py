"""How the demo models were made. Not part of the wheel."""
