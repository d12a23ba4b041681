"""The only room with torch: a clip becomes frames, a file and a record."""
