"""Renders with another program: its processes, and a clip from its file and its words."""
