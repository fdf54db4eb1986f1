"""Weights that lie elsewhere than they are used: placeholders, where values are, and bringing them in."""
