"""The planner's own settings, and what a model's configuration tells of it."""
