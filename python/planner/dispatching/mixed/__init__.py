"""The model's own code between blocks on several devices."""
