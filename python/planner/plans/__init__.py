"""What a plan says, in data, words and pictures."""
