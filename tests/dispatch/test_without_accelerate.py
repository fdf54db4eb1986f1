"""Where accelerate is not installed, dispatch works the same; where it is, nothing of its dispatch is used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import torch
import planner

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
want = model(torch.ones(1, 2))
planner.cpu_offload(model, "cpu")
assert model(torch.ones(1, 2)).equal(want)
assert model[0].weight.device.type == "meta"
hook = model[0]._hf_hook
planner.undispatch(model)
assert model(torch.ones(1, 2)).equal(want)
planner.add_hook_to_module(model[0], planner.SequentialHook(planner.ModelHook(), planner.AlignDevicesHook("cpu")))
assert model(torch.ones(1, 2)).equal(want)
print([cls.__module__ for cls in type(hook).__mro__ if cls.__module__.startswith("accelerate")])
"""


def outcome(blocked: set[str]) -> str:
    program = PROGRAM.replace("{blocked}", repr(blocked))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hooks_stand_alone_without_accelerate() -> None:
    assert outcome({"accelerate", "transformers"}) == "[]"


def test_nothing_of_accelerates_dispatch_is_called() -> None:
    """Its hooks' classes only: whatever else of it would act on a model is replaced by what raises."""
    program = """
import accelerate.big_modeling, accelerate.hooks, accelerate.utils.modeling
def never(*args, **kwargs):
    raise AssertionError("accelerate was called")
for module in (accelerate.big_modeling, accelerate.hooks, accelerate.utils.modeling, accelerate):
    for name, value in list(vars(module).items()):
        if callable(value) and not isinstance(value, type) and getattr(value, "__module__", "").startswith("accelerate"):
            setattr(module, name, never)
for cls in ("ModelHook", "SequentialHook", "AlignDevicesHook"):
    for name, value in list(vars(getattr(accelerate.hooks, cls)).items()):
        if callable(value):
            setattr(getattr(accelerate.hooks, cls), name, never)
""" + PROGRAM.replace("{blocked}", "set()")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "accelerate.hooks" in done.stdout
