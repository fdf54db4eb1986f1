"""Carrying out a plan on a live model: where tensors lie, where modules run, and what crosses between them.

`planner.dispatch` is the function of `dispatching.py`; the package of the same name stays importable by
`from planner.dispatching.… import`. All of its modules but `dispatching.py` and `journal.py` load torch when they are loaded;
`planner` loads them when one of their names is asked for.
"""
