"""transformers' four tests of loading over several devices, for small models of many classes.

Its test file is for testers of single models, which the source distribution lacks. Here a tester has the small models and
inputs of the sweep over dispatched classes.
"""

from __future__ import annotations

import copy
import importlib
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rig import Accelerators
from upstream.fetch import TRANSFORMERS, fetched
from upstream.from_pretrained.classes import CLASSES, TESTS

sys.path.insert(0, str(Path(__file__).parents[3] / "benches"))

import dispatch_sweep
import tiny_zoo

PACKAGE = "transformers_tests"
# What the test file imports from folders that the distribution lacks: bases of its class, with tests that are not run here.
LACKING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
NEEDED = ("_prepare_for_class", "check_device_map_is_respected", "model_split_percents")


def common_tests() -> type:
    """The class of transformers that has the tests."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(fetched(TRANSFORMERS).tests)]
    sys.modules[PACKAGE] = package
    for name, base in LACKING.items():
        folder, _, _ = name.partition(".")
        lacking = ModuleType(f"{PACKAGE}.{name}")
        setattr(lacking, base, type(base, (), {}))
        sys.modules[f"{PACKAGE}.{folder}"] = ModuleType(f"{PACKAGE}.{folder}")
        sys.modules[lacking.__name__] = lacking
    found: type = importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin
    return found


class SmallModel:
    """What a test asks for a configuration and inputs."""

    def __init__(self, subject: dispatch_sweep.Subject, device: torch.device) -> None:
        self.config = subject.model.config
        self.given = {key: value.to(device) for key, value in subject.given.items()}

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return copy.deepcopy(self.config), dict(self.given)


class OfOneClass(unittest.TestCase):
    """The tests for one model class; `model_class` is its name."""

    model_class = ""
    model_tester: SmallModel
    all_model_classes: tuple[type, ...]

    @classmethod
    def setUpClass(cls) -> None:
        accelerators = Accelerators()
        try:
            subject = dispatch_sweep.subject(cls.model_class, accelerators)
        except tiny_zoo.NotRunnableError as error:
            raise unittest.SkipTest(str(error)) from error
        if subject.model._no_split_modules is None:
            raise unittest.SkipTest("transformers does not split this class")
        cls.model_tester = SmallModel(subject, accelerators.devices[0])
        cls.all_model_classes = (type(subject.model),)

    def setUp(self) -> None:
        torch.manual_seed(0)  # weights are random


@pytest.fixture(autouse=True)
def eager_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded computes its experts as the small models do: the default is an operator that the host lacks."""
    import transformers

    def refused(self: Any) -> bool:
        raise ValueError("no grouped matrix product on virtual accelerators")

    monkeypatch.setattr(transformers.PreTrainedModel, "_grouped_mm_can_dispatch", refused)


def classes_of_tests() -> dict[str, type]:
    """A class of tests for each model class, by name."""
    common = vars(common_tests())
    shared = {name: common[name] for name in (*TESTS, *NEEDED)}
    return {
        f"Test{name}": type(f"Test{name}", (OfOneClass,), {**shared, "model_class": name}) for name in CLASSES
    }


globals().update(classes_of_tests())  # where pytest looks for them
