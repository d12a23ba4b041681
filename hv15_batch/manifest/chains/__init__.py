"""Shots that continue each other: clips that begin with a frame of another clip."""
