"""The independent judge of device maps."""
