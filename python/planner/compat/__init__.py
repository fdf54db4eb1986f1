"""Other libraries' signatures on our functions."""
