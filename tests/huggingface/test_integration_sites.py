"""What is replaced while an integration is in force, and what others put there meanwhile."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import peft
import pytest
from peft import peft_model
from transformers import modeling_utils
from transformers.integrations import accelerate as dispatching

import planner
from planner.compat import huggingface
from planner.compat.huggingface.in_force import in_force
from planner.compat.huggingface.sites import GROUPS
from planner.errors import IntegrationError, InvalidConfigError, InvalidInputError
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in

Answering: TypeAlias = Callable[[], planner.Integration | None]

pytestmark = pytest.mark.usefixtures("nothing_stays")

LATE = ("peft.peft_model", "peft.tuners.tuners_utils")


def attributes() -> dict[str, int]:
    """Every attribute of every module and class of the three libraries that is loaded, by what it is."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("transformers", "accelerate", "peft"):
            for word, value in list(vars(module).items()):
                found[f"{name}.{word}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    found |= {f"{name}.{word}.{each}": id(inner) for each, inner in vars(value).items()}
    return found


def in_places() -> list[object]:
    """What is in each place of the libraries that are loaded."""
    return [each.found() for group in GROUPS for each in group.sites if each.module in sys.modules]


def test_nothing_else_is_changed() -> None:
    with planner.integrate():
        pass  # imports what it needs
    before = attributes()
    with planner.integrate() as here:
        inside = attributes()
        assert {name for name in before if inside[name] != before[name]} == set(map(str, here.sites))
    assert attributes() == before
    assert len(here.sites) == len(set(here.sites)) >= 12


def test_sites_say_the_version_of_their_library() -> None:
    with planner.integrate() as here:
        versions = {site.library: site.version for site in here.sites}
    assert versions["peft"] == peft.__version__
    assert here.sites[0].version == sys.modules["transformers"].__version__


def test_parameters_and_names_stay() -> None:
    before = inspect.signature(dispatching.dispatch_model), dispatching.dispatch_model
    with planner.integrate():
        ours = dispatching.dispatch_model
        assert (inspect.signature(ours), inspect.unwrap(ours)) == before
        assert ours.__name__ == "dispatch_model"
        assert ours.__module__ == "accelerate.big_modeling"


# ---- What does not fit


def other(model: object, device_map: object) -> None: ...


@pytest.mark.parametrize(
    "module, name", [(modeling_utils, "_get_device_map"), (dispatching, "dispatch_model")]
)
def test_parameters_that_are_not_known_are_an_error(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, other)
    before = in_places()
    with pytest.raises(IntegrationError) as caught, planner.integrate():
        pass
    assert in_places() == before
    error = caught.value
    assert (error.library, error.version) == ("transformers", sys.modules["transformers"].__version__)
    [problem] = error.problems
    assert problem.startswith(f"{module.__name__}.{name}(model: 'object', device_map: 'object')")
    assert f"transformers {error.version}" in error.message
    with pytest.raises(IntegrationError):
        planner.install()
    assert in_places() == before
    monkeypatch.undo()


def test_a_name_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dispatching, "dispatch_model")
    monkeypatch.delattr(modeling_utils, "_get_device_map")
    with pytest.raises(IntegrationError) as caught, planner.integrate():
        pass
    assert caught.value.problems == (
        "transformers.modeling_utils._get_device_map is missing",
        "transformers.integrations.accelerate.dispatch_model is missing",
    )
    monkeypatch.undo()


def test_a_library_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers.modeling_utils", None)
        with pytest.raises(IntegrationError, match="modeling_utils cannot be imported") as caught:
            planner.install()
    assert caught.value.library == "transformers"
    assert not [finder for finder in sys.meta_path if "planner" in type(finder).__module__]


def test_a_misfit_inside_leaves_what_is_in_force(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    with planner.integrate() as here:
        with monkeypatch.context() as patch:
            patch.setattr(modeling_utils, "_get_device_map", other)
            with pytest.raises(IntegrationError), planner.integrate():
                pass
            assert answering() is here
        assert answering() is here


def test_words_and_settings_are_checked_at_once() -> None:
    with pytest.raises(InvalidInputError, match="auto is 'best' or 'transformers', not 'good'"):
        planner.integrate(auto="good")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="outside is 'raise' or 'fetch'"):
        planner.install(outside=None)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="headroom"):
        planner.integrate(headroom={0: "-1GiB"})
    with pytest.raises(InvalidConfigError, match="colour"):
        planner.install(colour="red")  # type: ignore[call-arg]
    assert in_force() is None


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ({"dtype": "float16"}, r"dtype= would be without effect: .*from_pretrained\(…, dtype=…\)"),
        ({"special_dtypes": {"lm_head": "float16"}}, "special_dtypes= would"),
        ({"offload_folder": "here", "offload_buffers": True}, "offload_folder= .*; offload_buffers="),
        (
            {"auto": "transformers", "headroom": "1GiB", "mode": "gpu_only"},
            "headroom=, mode= would .*leave auto",
        ),
    ],
)
def test_settings_that_no_load_would_heed_are_refused(said: Any, instead: str) -> None:
    with pytest.raises(InvalidInputError, match=instead):
        planner.integrate(**said)
    with pytest.raises(InvalidInputError, match=instead):
        planner.install(**said)
    planner.integrate(auto="transformers", max_memory={0: "1GiB"}, dtype=None, headroom=None)
    assert in_force() is None


def test_settings_are_its_own() -> None:
    headroom = {0: "1GiB"}
    here = planner.integrate(headroom=headroom)
    headroom[0] = "none"
    assert here.settings == {"headroom": {0: "1GiB"}}


# ---- What others put there


def wrapping(before: Callable[..., object], calls: list[str], *, says_so: bool) -> Callable[..., object]:
    def wrapper(*args: object, **kwargs: object) -> object:
        calls.append("foreign")
        return before(*args, **kwargs)

    return functools.wraps(before)(wrapper) if says_so else wrapper


@pytest.mark.parametrize("says_so", [True, False])
def test_a_foreign_wrapper_from_before_stays(
    says_so: bool, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    foreign = wrapping(dispatching.dispatch_model, calls, says_so=says_so)
    with monkeypatch.context() as patch:
        patch.setattr(dispatching, "dispatch_model", foreign)
        with planner.integrate() as here:
            assert answering() is here
        assert dispatching.dispatch_model is foreign
        assert answering() is None
        assert calls == ["foreign"]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_foreign_wrapper_put_on_inside_stays_and_ours_passes_below_it(
    says_so: bool, answering: Answering
) -> None:
    calls: list[str] = []
    original = dispatching.dispatch_model
    with planner.integrate() as here:
        ours = dispatching.dispatch_model
        foreign = wrapping(ours, calls, says_so=says_so)
        dispatching.dispatch_model = foreign
        assert answering() is here
        with planner.integrate() as inner:
            assert answering() is inner
    assert dispatching.dispatch_model is foreign
    assert answering() is None
    with planner.integrate() as here:
        assert answering() is here
    assert dispatching.dispatch_model is foreign
    # It is taken off after: what it had found is put back, and that is ours, which passes everything on.
    dispatching.dispatch_model = ours
    assert answering() is None
    with planner.integrate() as here:
        assert answering() is here
    assert dispatching.dispatch_model is original


def test_what_others_put_back_inside_is_replaced_again(answering: Answering) -> None:
    original = dispatching.dispatch_model
    with planner.integrate():
        dispatching.dispatch_model = original  # a patch from before, taken off
        assert answering() is None
        with planner.integrate() as here:
            assert answering() is here
    assert dispatching.dispatch_model is original


def test_what_others_put_back_is_replaced_when_it_is_installed_again(answering: Answering) -> None:
    original = dispatching.dispatch_model
    try:
        here = planner.install()
        dispatching.dispatch_model = original
        assert answering() is None
        assert planner.install() is here is answering()
    finally:
        planner.uninstall()


# ---- Libraries that are loaded inside


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if two of its modules had not been loaded yet."""
    for name in LATE:
        parent, _, local = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], local, sys.modules[name])
        monkeypatch.delitem(sys.modules, name)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("without_peft")
def test_a_library_that_is_loaded_inside_gets_its_sites() -> None:
    with planner.integrate() as here:
        assert {site.library for site in here.sites} == {"transformers"}
        late = [importlib.import_module(name) for name in LATE]
        assert {site.library for site in here.sites} == {"transformers", "peft"}
        assert late[0].dispatch_model is not peft_model.dispatch_model
        assert not [module for module in late if "planner" in repr(module.__spec__)]
    assert late[0].dispatch_model is peft_model.dispatch_model
    assert not [finder for finder in sys.meta_path if "planner" in type(finder).__module__]


@pytest.mark.usefixtures("without_peft")
def test_a_library_that_does_not_fit_cannot_be_loaded_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    monkeypatch.setattr(accelerate, "dispatch_model", other)  # where peft takes it from
    importlib.import_module("peft.tuners.tuners_utils")
    with planner.integrate() as here:
        with pytest.raises(IntegrationError, match="nothing of peft was replaced") as caught:
            importlib.import_module("peft.peft_model")
        assert caught.value.library == "peft"
        assert {site.library for site in here.sites} == {"transformers"}


@pytest.mark.usefixtures("without_peft")
def test_who_is_not_inside_can_load_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import accelerate

    monkeypatch.setattr(accelerate, "dispatch_model", other)
    here = planner.integrate()
    importlib.import_module("peft.tuners.tuners_utils")
    with here:
        with caplog.at_level(logging.WARNING, "planner"), monkeypatch.context() as patch:
            patch.setattr(huggingface.in_force, "in_force", lambda: None)  # as in another thread
            importlib.import_module("peft.peft_model")
        assert {site.library for site in here.sites} == {"transformers"}
    assert [record for record in caplog.records if "nothing of peft was replaced" in record.message]


# ---- Where something else distributes a model


@pytest.mark.parametrize("way", ["distributed_config", "is_fsdp_enabled", "is_deepspeed_zero3_enabled"])
def test_ours_steps_aside_with_one_line(
    way: str, answering: Answering, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = SimpleNamespace(config=SimpleNamespace(distributed_config=None), _no_split_modules=[])
    if way == "distributed_config":
        model.config.distributed_config = object()
    else:
        monkeypatch.setattr(dispatching, way, lambda: True)
    device_map = {"": "cpu"}
    with planner.integrate(), caplog.at_level(logging.WARNING, "planner"):
        for _ in range(2):
            assert modeling_utils._get_device_map(model, device_map, None, None) is device_map
    assert [record.message.partition(":")[0] for record in caplog.records] == ["planner steps aside"]


# ---- Interrupts


@pytest.mark.skipif(not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11")
@pytest.mark.parametrize("every", [97, pytest.param(1, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("is_for_all", [False, True])
def test_an_interrupt_anywhere_in_entering_and_leaving_leaves_nothing(is_for_all: bool, every: int) -> None:
    here = planner.integrate()
    with here:
        pass
    before = in_places()

    def enter_and_leave() -> None:
        with here:
            pass

    def install_and_uninstall() -> None:
        planner.install()
        planner.install(auto="transformers")
        planner.uninstall()

    stops = 1
    run = install_and_uninstall if is_for_all else enter_and_leave
    while interrupted_in((Path(huggingface.__file__).parent,), run, stops):
        if is_for_all:
            planner.uninstall()
        elif in_force() is not None:  # the interrupt came before the first instruction of leaving
            here.__exit__(None, None, None)
        assert in_places() == before, stops
        assert in_force() is None, stops
        stops += every
    assert stops > 500
