"""From a checked request to an installed dispatch, and back."""
