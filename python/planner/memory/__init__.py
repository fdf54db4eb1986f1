"""Memory that a model takes while it runs: caches, activations, and what a recording tells of them."""
