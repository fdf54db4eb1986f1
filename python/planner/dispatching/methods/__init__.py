"""What stands in the place of a module's own methods."""
