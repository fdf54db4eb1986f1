"""What this machine does in a second, measured."""
