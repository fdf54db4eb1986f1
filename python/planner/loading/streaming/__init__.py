"""Blocks that rest in a checkpoint's files and run on the CPU: read ahead of their use, or used where the page cache has them."""
