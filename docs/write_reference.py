"""Writes docs/reference from docstrings; `make docs` runs it, and a test holds that what lies there is what it would write."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import planner

FOLDER = Path(__file__).parent / "reference"
SECTIONS = ("Args", "Fields", "Returns", "Raises", "Guarantee", "Cost", "Source", "Example")
_LISTS = ("Args", "Raises")  # an item for each name
_WIDTH = 110

_HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):(?: (.*))?$")
_BESIDE = re.compile(r"(?<=\.) (Fields|Source): ")
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*): (.*)$", re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|data|mod):`~?([\w.]+)`")


@dataclass(frozen=True)
class Page:
    """One file of the reference: names are public ones of planner, or full paths of modules that are documented."""

    title: str
    about: str
    names: tuple[str, ...]


def _below(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"planner.{module}.{name}" for name in names.split())


PAGES = {
    "planning": Page(
        "Plans",
        "See [planning](../planning.md) for how a plan comes about.",
        (
            *(
                "plan",
                "plan_many",
                "explain",
                "Plan",
                "largest",
                "Largest",
                "first_that_fits",
                "FirstPlan",
                "demands",
            ),
            *_below("memory.demands", "Demands BlockDemand"),
            *_below("plans.parts", "Source DevicePlan Certificate Reason Shortfall Setting"),
            *_below("plans.device_map", "DeviceMap"),
            *_below("plans.runs", "runs_of Run"),
            *_below("memory.cache_layers", "cache_bytes layer_caches LayerCache"),
            *_below("plans.diff", "PlanDiff PlanDifference UsageDifference"),
            *_below("plans.notices", "notices Notice"),
            *_below("plans.wording", "sentence first_device_of"),
        ),
    ),
    "settings": Page(
        "Settings",
        "What `plan()` and the command take; see [planning](../planning.md) and [configuration](../configuration.md).",
        (
            *_below(
                "settings.schema",
                "Settings Auto Sequential Balanced BalancedLow0 Latency Throughput Pipeline Model Workload",
            ),
            *_below("units", "parse_bytes format_bytes"),
        ),
    ),
    "steps": Page(
        "Step by step",
        "See [steps](../steps.md): the sequential strategy on a flattened model.",
        (
            *_below("model.tree", "ModuleTree"),
            *_below("strategies.sequential", "Layout sequential sequential_many Outcome"),
        ),
    ),
    "checking": Page(
        "Checking device maps",
        "The judge shares no code with what it judges.",
        ("check", "is_valid", "Finding", *_below("checker.described", "model_from_sizes")),
    ),
    "dispatch": Page(
        "Dispatching models",
        "See [dispatch](../dispatch.md) for what crosses and what rests.",
        (
            *("dispatch", "undispatch", "verify", "Verification", "PeakRow", "measure", "Measurement"),
            *("crossings", "Crossing", "state_dict", "StateDict"),
        ),
    ),
    "huggingface": Page(
        "Inside of Hugging Face's libraries",
        "See [Hugging Face](../huggingface.md) for what happens inside, and with which device maps.",
        ("integrate", "install", "uninstall", "plan_of", "Integration"),
    ),
    "loading": Page(
        "Loading models",
        "See [loading](../loading.md) for what is read, and when.",
        ("load", "load_report", "LoadReport", "LoadedTensor", "StreamingProgress"),
    ),
    "pipelines": Page(
        "Several processes",
        "See [machines](../machines.md) for how they are started, and what to do when one of them fails.",
        ("pipeline", "Pipeline", *_below("pipelines.stage", "Stage")),
    ),
    "accelerate": Page(
        "accelerate's functions: sizes and device maps",
        "The signatures are accelerate's; [divergences](../divergences.md) lists what differs.",
        (
            *("infer_auto_device_map", "get_balanced_memory", "get_max_memory", "check_device_map"),
            *("clean_device_map", "compute_module_sizes", "compute_module_total_buffer_size"),
            *("calculate_maximum_sizes", "get_max_layer_size", "get_module_size_with_ties"),
            *("fallback_allocate", "find_tied_parameters", "check_tied_parameters_in_config"),
            *("check_tied_parameters_on_same_device", "retie_parameters", "named_module_tensors"),
            *("dtype_byte_size", "convert_file_size_to_int"),
        ),
    ),
    "accelerate_models": Page(
        "accelerate's functions: models and tensors",
        "The signatures are accelerate's; [divergences](../divergences.md) lists what differs.",
        (
            *("load_checkpoint_and_dispatch", "load_checkpoint_in_model"),
            *("dispatch_model", "cpu_offload", "disk_offload", "cpu_offload_with_hook"),
            *("init_empty_weights", "init_on_device", "set_module_tensor_to_device", "send_to_device"),
            *("find_device", "align_module_device", "get_non_persistent_buffers", "has_offloaded_params"),
            *("get_state_dict_offloaded_model", "get_state_dict_from_offload", "load_offloaded_weights"),
            *("offload_weight", "load_offloaded_weight", "offload_state_dict", "save_offload_index"),
            *("extract_submodules_state_dict", "OffloadedWeightsLoader", "PrefixedDataset"),
        ),
    ),
    "hooks": Page(
        "accelerate's hooks",
        "The signatures are accelerate's; [divergences](../divergences.md) lists what differs.",
        (
            *("add_hook_to_module", "remove_hook_from_module", "remove_hook_from_submodules"),
            *("attach_align_device_hook", "attach_align_device_hook_on_blocks"),
            *("attach_execution_device_hook", "attach_layerwise_casting_hooks"),
            *("ModelHook", "SequentialHook", "AlignDevicesHook", "CpuOffload", "UserCpuOffloadHook"),
            "LayerwiseCastingHook",
        ),
    ),
    "transformers": Page(
        "transformers' functions",
        "The same for the planner inside of transformers, whose rules differ a little.",
        _below(
            "compat.transformers",
            "infer_auto_device_map get_balanced_memory get_max_memory compute_module_sizes "
            "compute_module_total_buffer_size check_tied_parameters_on_same_device",
        ),
    ),
    "pictures": Page(
        "Pictures",
        "See [pictures](../pictures.md).",
        (
            *_below("report.terminal", "plan_view"),
            *_below("report.html", "html_report"),
            "show",
            *_below("planning.partial", "partial_plan"),
        ),
    ),
    "configuration": Page(
        "Layered configuration",
        "See [configuration](../configuration.md); nothing here knows of planning.",
        _below(
            "config",
            "config setting rule Stack Resolved diff Difference Layer Replace UNSET Leaf Origin Problem Rank UserSource",
        ),
    ),
    "machines": Page(
        "Machines",
        "What devices do in a second, and what a step is modelled to take.",
        (
            *("Machine", "probe", "Probed", "price"),
            *_below("plans.timing", "Timing TimedStage TimedPiece"),
            *_below("strategies.timed", "solve_table LineAnswer LineRun"),
            *_below("devices.table_machine", "machine_of_cards Host"),
            *_below("devices.machine_parts", "MachineDevice Link Route"),
            *_below("devices.rate", "Rate"),
        ),
    ),
    "export": Page(
        "Other engines",
        "See [machines](../machines.md#other-engines): plans in the words of vLLM, SGLang, Megatron and others.",
        _below(
            "export",
            "Command vllm sglang megatron tensorrt_llm torchtitan llama_cpp huggingface deepspeed",
        ),
    ),
    "errors": Page(
        "Errors",
        "See [errors](../errors.md) for when each is raised, and what helps.",
        (
            *("PlannerError", "InvalidInputError", "InvalidTreeError", "InvalidDevicesError"),
            *("InvalidConstraintError", "InvalidByteSizeError", "InvalidConfigError", "InfeasibleError"),
            *("CheckpointError", "OffloadError", "PlanMismatchError", "IntegrationError"),
            "PipelineError",
            "RecordingError",
            "UnknownMemoryError",
        ),
    ),
}


def found(name: str) -> Any:
    """What a name of a page stands for."""
    if "." not in name:
        return getattr(planner, name)
    module, _, local = name.rpartition(".")
    return getattr(importlib.import_module(module), local)


def anchors(page: Page) -> dict[str, str]:
    """By name, where its heading is found: in lower case, numbered where two differ only in that."""
    seen: Counter[str] = Counter()
    places = {}
    for name in page.names:
        lower = name.rpartition(".")[2].lower()
        places[name] = f"{lower}-{seen[lower]}" if seen[lower] else lower
        seen[lower] += 1
    return places


# By the last part of a name, its place. The functions of transformers share theirs with accelerate's.
_PLACES = {
    name.rpartition(".")[2]: f"{file}.md#{anchor}"
    for file, page in PAGES.items()
    if file != "transformers"
    for name, anchor in anchors(page).items()
}


def inline(text: str) -> str:
    """Text of a docstring as Markdown: names of functions and classes become links to their entry."""

    def link(match: re.Match[str]) -> str:
        local = match.group(1).rpartition(".")[2]
        return f"[`{local}`]({_PLACES[local]})" if local in _PLACES else f"`{local}`"

    return _ROLE.sub(link, " ".join(text.split())).replace("``", "`")


def sections(text: str) -> dict[str, str]:
    """A docstring by section; what stands before the first one is under ""."""
    parts: dict[str, list[str]] = {"": []}
    current, was_blank = "", False
    for line in inspect.cleandoc(text).splitlines():
        head = _HEAD.match(line)
        if head:
            current = head.group(1)
            parts[current] = [head.group(2)] if head.group(2) else []
        elif was_blank and line[:1].strip():
            current = ""
            parts[""] += ["", line]
        else:
            parts[current].append(line)
        was_blank = not line.strip()
    texts = {name: textwrap.dedent("\n".join(lines)).strip("\n") for name, lines in parts.items()}
    # In a docstring of one line, its sections stand on that line.
    texts[""], *others = _BESIDE.split(texts[""])
    return texts | dict(zip(others[::2], others[1::2], strict=True))


def paragraphs(text: str) -> list[str]:
    """Paragraphs, each on one line."""
    return [inline(each) for each in re.split(r"\n\s*\n", text) if each.strip()]


def items(text: str) -> list[str]:
    """Items of a section as a list; continuation lines are indented in docstrings."""
    joined = re.sub(r"\n[ \t]+", " ", text)
    rows = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        item = _ITEM.match(line)
        names = ", ".join(f"`{name}`" for name in item.group(1).split(", ")) + ": " if item else ""
        rows.append(f"- {names}{inline(item.group(2) if item else line)}")
    return rows


def body(text: str) -> list[str]:
    """The Markdown of a docstring, its sections in the one order."""
    parts = sections(text)
    blocks = paragraphs(parts.pop(""))
    for name in SECTIONS:
        if name not in parts:
            continue
        if name == "Example":
            blocks.append(f"**Example**\n\n```pycon\n{parts[name]}\n```")
        elif name in _LISTS:
            blocks.append("\n".join([f"**{name}**", "", *items(parts[name])]))
        else:
            blocks.append(f"**{name}**: " + "\n\n".join(paragraphs(parts[name])))
    return blocks


def signature(name: str, value: Any) -> str:
    """How a function is called, or a class made, in one line or one for each parameter; of an enum, its members."""
    if isinstance(value, type) and issubclass(value, Enum):
        return "\n".join(f"{name}.{member.name}" for member in value)
    try:
        wanted = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    pieces, star, positional = [], False, False
    for parameter in wanted.parameters.values():
        if parameter.name == "self":
            continue
        if positional and parameter.kind is not parameter.POSITIONAL_ONLY:
            pieces.append("/")
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not star:
            pieces.append("*")
            star = True
        pieces.append(_parameter(parameter))
    result = wanted.return_annotation
    arrow = "" if result is wanted.empty or isinstance(value, type) else f" -> {_annotation(result)}"
    line = f"{name}({', '.join(pieces)}){arrow}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {piece}," for piece in pieces), f"){arrow}"])


def _annotation(said: Any) -> str:
    text = said if isinstance(said, str) else inspect.formatannotation(said)
    return text.replace("typing.", "")


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {_default(parameter.default)}"
    return text


def _default(value: Any) -> str:
    """As it would be written; a record by its name alone, an object without a spelling of its own not at all."""
    if is_dataclass(value):
        return f"{type(value).__name__}()"
    return "..." if repr(value).startswith("<") else repr(value)


def members(cls: type) -> list[str]:
    """Documented methods and properties of a class; of a hook, those that every hook has."""
    rows = []
    for name, value in vars(cls).items():
        is_internal = issubclass(cls, planner.ModelHook) and not hasattr(planner.ModelHook, name)
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or is_internal or not inspect.isfunction(function) or not function.__doc__:
            continue
        called = getattr(cls, name) if isinstance(value, classmethod) else function
        head = name if isinstance(value, property) else " ".join(signature(name, called).split())
        first, *rest = body(function.__doc__)
        rows.append("\n\n".join([f"- `{head}`: {first}", *(textwrap.indent(each, "  ") for each in rest)]))
    return rows


def entry(name: str) -> list[str]:
    """One name of the reference: heading, how it is called, and its docstring."""
    value, local = found(name), name.rpartition(".")[2]
    is_error = isinstance(value, type) and issubclass(value, Exception)
    door = "planner" if "." not in name else name.rpartition(".")[0]
    blocks = [f"## {local}"]
    if is_error:
        bases = ", ".join(base.__name__ for base in value.__bases__)
        blocks.append(f"```python\nfrom {door} import {local}\n\nclass {local}({bases})\n```")
    else:
        blocks.append(f"```python\nfrom {door} import {local}\n\n{signature(local, value)}\n```")
    blocks += body(value.__doc__ or "")
    if isinstance(value, type) and not is_error:
        listed = members(value)
        blocks += ["**Members**", "\n".join(listed)] if listed else []
    return blocks


def pages() -> dict[str, str]:
    """Texts by name of file, the index among them."""
    head = "<!-- Written by `make docs` from the docstrings. -->"
    texts = {
        f"{file}.md": "\n\n".join(
            [f"# {page.title}", head, page.about, *(block for name in page.names for block in entry(name))]
        )
        + "\n"
        for file, page in PAGES.items()
    }
    rows = [
        f"- [{page.title}]({file}.md): "
        + ", ".join(
            f"[`{name.rpartition('.')[2]}`]({file}.md#{place})" for name, place in anchors(page).items()
        )
        for file, page in PAGES.items()
    ]
    texts["index.md"] = "\n\n".join(["# Reference", head, "\n".join(rows)]) + "\n"
    return texts


def main() -> None:
    """Writes all pages, and removes those that are none any more."""
    texts = pages()
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.md"):
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
