"""What a run will take: seconds, bytes, the offload profile, the pace."""
