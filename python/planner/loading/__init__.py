"""A model from a checkpoint's own files: what lies where, what comes out of what, and how it is read."""
