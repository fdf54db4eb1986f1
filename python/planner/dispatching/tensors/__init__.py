"""Tensors of a live model: where they hang, copies of them, and placeholders for what is offloaded."""
