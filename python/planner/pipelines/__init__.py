"""A plan's runs as stages of a pipeline, each in a process of its own."""
