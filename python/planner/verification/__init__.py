"""Whether a plan runs, and where it crosses, without moving a weight."""
