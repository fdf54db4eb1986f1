"""Options for settings, as a layer each of the configuration, in the order in which they came."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import click
from click.shell_completion import CompletionItem

from planner.cli.output import write_remark
from planner.cli.parsing import FILE, GivenOption, given_options
from planner.config import Stack
from planner.config.stack import command_file
from planner.errors import InvalidInputError
from planner.settings.schema import Settings
from planner.spelling import NAMED

SettingsStack = Stack[Settings]


@dataclass(frozen=True, slots=True)
class OptionValue:
    """One option, with the earlier values of the same option."""

    texts: tuple[str, ...]  # of this option, this one last
    flag: str
    number: int  # among all options for settings

    @property
    def text(self) -> str:
        return self.texts[-1]

    @property
    def spelled(self) -> str:
        return f"{self.flag} {self.text}"

    def pair(self, form: str) -> tuple[str, str]:
        """What stands before and after the last equals sign."""
        name, equals, value = self.text.rpartition("=")
        if not equals:
            raise InvalidInputError(f"{self.spelled}: expected {form}", option=self.flag, text=self.text)
        return name, value


@dataclass(frozen=True, slots=True)
class SettingOption:
    """One option, and how it becomes a layer."""

    name: str
    flags: tuple[str, ...]
    form: str
    help: str
    add: Callable[[SettingsStack, OptionValue], SettingsStack]


def _plain(path: str, stack: SettingsStack, given: OptionValue) -> SettingsStack:
    return stack.option(path, given.text, given.spelled, number=given.number)


def _word(path: str, stack: SettingsStack, given: OptionValue) -> SettingsStack:
    """One of a few words, in the spelling of shells, too: gpu-only, GPU_ONLY."""
    word = given.text.strip().lower().replace("-", "_")
    return stack.option(path, word, given.spelled, number=given.number)


def _device_key(text: str) -> str:
    """A device as people write it: CPU, Disk."""
    return text.lower() if text.lower() in NAMED else text


def _device(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    device, size = given.pair("DEVICE=SIZE, as in -d 0=80GiB")
    if len(given.texts) == 1:  # the first one says which devices there are, so it replaces what files name
        return stack.option("max_memory", {_device_key(device): size}, given.spelled, number=given.number)
    return stack.option(f"max_memory.{_device_key(device)}", size, given.spelled, number=given.number)


def _headroom(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    device, equals, room = given.text.rpartition("=")
    path = f"headroom.{_device_key(device) if equals else 'all'}"
    return stack.option(path, room, given.spelled, number=given.number)


def _pin(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    name, device = given.pair("MODULE=DEVICE, as in --pin lm_head=0")
    return stack.option(f"pin.{name}", _device_key(device), given.spelled, number=given.number)


def _forbid(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    name, _ = given.pair("MODULE=DEVICE, as in --forbid model.visual=1")
    pairs = [text.rpartition("=") for text in given.texts]
    devices = [
        device for known, _, text in pairs if known == name for device in map(_device_key, text.split(","))
    ]
    return stack.option(f"forbid.{name}", devices, given.spelled, number=given.number)


def _together(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    groups = [text.split(",") for text in given.texts]
    return stack.option("keep_together", groups, given.spelled, number=given.number)


def _no_split(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    classes = [name for text in given.texts for name in text.split(",")]
    return stack.option("no_split_module_classes", classes, given.spelled, number=given.number)


def _as_written(stack: SettingsStack, given: OptionValue) -> SettingsStack:
    return stack.arguments([given.flag, given.text], first=given.number)


SETTING_OPTIONS: Final = (
    SettingOption(
        "device",
        ("-d", "--device"),
        "DEVICE=SIZE",
        "Budget of a device: 0=80GiB, cpu=200GiB, disk=1TB. Only devices that are named are used; "
        "without any, all that this machine has free.",
        _device,
    ),
    SettingOption(
        "headroom",
        ("--headroom",),
        "[DEVICE=]SIZE",
        "What stays free, of one device or of all: 5%, 1=2GiB.",
        _headroom,
    ),
    SettingOption(
        "mode", ("--mode",), "MODE", "Where weights may lie: any, no_disk, gpu_only.", partial(_word, "mode")
    ),
    SettingOption(
        "fill",
        ("--fill",),
        "FILL",
        "How room that is left over is spread: even, fewest, in_order.",
        partial(_word, "strategy.fill"),
    ),
    SettingOption(
        "strategy",
        ("--strategy",),
        "STRATEGY",
        "How devices are filled: auto; latency, throughput or pipeline, which go by modelled time; accelerate's sequential, balanced, "
        "balanced_low_0.",
        partial(_word, "strategy.type"),
    ),
    SettingOption(
        "tokens",
        ("--tokens",),
        "COUNT",
        "New tokens of a step, for strategies that go by time; without it, one for each sequence.",
        partial(_plain, "strategy.tokens"),
    ),
    SettingOption(
        "order",
        ("--order",),
        "ORDER",
        "Whether devices follow each other as they are given, or in any order: given, any.",
        partial(_word, "strategy.order"),
    ),
    SettingOption(
        "machine",
        ("--machine",),
        "FILE",
        "What devices do in a second, as planner probe --out writes it; without it, a table of known cards.",
        partial(_plain, "machine"),
    ),
    SettingOption(
        "engine",
        ("--engine",),
        "ENGINE",
        "What runs the plan, where it is not this process: planner, vllm, sglang, megatron, tensorrt_llm, torchtitan, deepspeed, llama_cpp.",
        partial(_word, "engine"),
    ),
    SettingOption(
        "dtype",
        ("--dtype",),
        "DTYPE",
        "What the weights will be loaded as, such as bf16.",
        partial(_plain, "dtype"),
    ),
    SettingOption("pin", ("--pin",), "MODULE=DEVICE", "Put a module on a device.", _pin),
    SettingOption(
        "forbid",
        ("--forbid",),
        "MODULE=DEVICE",
        "Keep a module off a device, or off several: x=0,1.",
        _forbid,
    ),
    SettingOption("together", ("--together",), "A,B", "Keep modules on one device.", _together),
    SettingOption(
        "no_split",
        ("--no-split",),
        "CLASS",
        "Modules of this class stay whole; without it, what the model's type says.",
        _no_split,
    ),
    SettingOption(
        "granularity",
        ("--granularity",),
        "SIZE",
        "What is placed as a whole: block, module, part, expert.",
        partial(_word, "granularity"),
    ),
    SettingOption(
        "context",
        ("--context",),
        "TOKENS",
        "Plan for running, too: tokens that a sequence reaches, such as 32k (k is 1024).",
        partial(_plain, "workload.context_length"),
    ),
    SettingOption(
        "batch", ("--batch",), "COUNT", "Sequences at once.", partial(_plain, "workload.batch_size")
    ),
    SettingOption(
        "prompt",
        ("--prompt",),
        "TOKENS",
        "Tokens of the first forward; without it, all of the context.",
        partial(_plain, "workload.prompt_length"),
    ),
    SettingOption(
        "cache",
        ("--cache",),
        "CACHE",
        "How keys and values are kept: dynamic, static, offloaded, none.",
        partial(_word, "workload.cache"),
    ),
    SettingOption(
        "assign", ("--set",), "PATH=VALUE", "Any setting by its path; := replaces a mapping.", _as_written
    ),
    SettingOption("unset", ("--unset",), "PATH", "Forget what was said before of a setting.", _as_written),
    SettingOption(
        "config",
        ("--config",),
        "FILE",
        "A YAML, TOML or JSON file of settings, below the other options.",
        _as_written,
    ),
)
"""All of them; every command that plans or shows settings takes all."""

_BY_NAME: Final = {option.name: option for option in SETTING_OPTIONS}


def takes_settings(function: Callable[..., int]) -> Callable[..., int]:
    """Gives a command the options of :data:`SETTING_OPTIONS`; :func:`settings_of` reads them from its context."""
    for option in reversed(SETTING_OPTIONS):
        declare = click.option(
            *option.flags,
            option.name,
            metavar=option.form,
            help=option.help,
            multiple=True,
            expose_value=False,
            shell_complete=_completion(option.name),
        )
        function = declare(function)
    return function


def _completion(
    name: str,
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem] | list[str]] | None:
    if name in ("config", "machine"):
        return FILE.shell_complete
    if name not in ("mode", "fill", "granularity", "dtype", "cache", "strategy", "order", "engine"):
        return None

    def complete(_: click.Context, __: click.Parameter, start: str) -> list[CompletionItem] | list[str]:
        return [word for word in _choices(name) if word.startswith(start)]

    return complete


def _choices(name: str) -> list[str]:
    from typing import get_args, get_type_hints

    from planner.config.types import Classes, schema_of
    from planner.settings.schema import DTYPES, FORMATS, Auto, Latency, Workload

    if name == "dtype":
        return [*DTYPES, *FORMATS]
    if name == "strategy":
        tree = schema_of(Settings).fields["strategy"].type.tree
        return list(tree.tags) if isinstance(tree, Classes) else []
    owner = {"fill": Auto, "cache": Workload, "order": Latency}.get(name, Settings)
    return [
        word
        for said in get_args(get_type_hints(owner)[name])
        for word in get_args(said) or (said,)
        if isinstance(word, str)
    ]


def settings_of(context: click.Context) -> SettingsStack:
    """What a command reads: ``./planner.yaml``, the environment, its options; of variables that mean nothing it warns."""
    stack = stack_of(given_options(context), os.environ)
    for name, near in stack.unknown_variables(os.environ).items():
        meant = f"; did you mean {near}?" if near else ""
        write_remark(f"the variable {name} names no setting and is ignored{meant}")
    return stack


def remark_file() -> None:
    """Says on stderr that settings are used which the command line does not show."""
    found = command_file()
    if found is not None:
        write_remark(f"settings of ./{found} are used")


def stack_of(options: Iterable[GivenOption], environ: Mapping[str, str]) -> SettingsStack:
    """``./planner.yaml`` if there is one, variables that name settings, and options in the order given.

    Raises:
        InvalidInputError: an option without its equals sign. Fields: ``option``, ``text``.
    """
    stack = Stack.from_command(Settings, [], environ)
    before: dict[str, tuple[str, ...]] = {}
    ours = [each for each in options if each.name in _BY_NAME]
    for number, each in enumerate(ours, start=1):
        before[each.name] = (*before.get(each.name, ()), each.text)
        option = _BY_NAME[each.name]
        stack = option.add(stack, OptionValue(before[each.name], option.flags[0], number))
    return stack
