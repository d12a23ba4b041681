"""Prompts are rewritten by a server before they are rendered; the user may edit the texts."""
