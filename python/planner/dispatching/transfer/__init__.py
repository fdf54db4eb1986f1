"""What crosses between devices: arguments, containers, and what is written into them."""
