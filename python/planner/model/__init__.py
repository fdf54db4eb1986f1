"""The flattened model: modules and tensors, their sizes, and what is placed as a whole."""
