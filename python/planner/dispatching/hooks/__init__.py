"""accelerate's hook protocol."""
