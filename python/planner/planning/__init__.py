"""`plan()` and `plan_many()`: from a model and settings to a plan."""

from planner.planning.api import plan, plan_many

__all__ = ["plan", "plan_many"]
