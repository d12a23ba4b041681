"""First frames, videos, and the settings in a video's comment."""
