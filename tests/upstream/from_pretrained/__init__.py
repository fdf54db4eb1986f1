"""transformers' own tests of loading over several devices, with its functions and inside `planner.integrate()`."""
