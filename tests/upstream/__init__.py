"""accelerate's own tests, run with its functions and with ours: `make upstream`."""
