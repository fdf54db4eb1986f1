"""Ways to place a model: accelerate's, repaired, and ours."""
