"""Prompts as templates: choices, weights and files of words become the prompts of rows."""
