"""`explain`: containers by device and in runs, names that are there and those that are not, advice that can be followed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

import planner
from generators import tree
from planner import Plan
from planner.errors import InfeasibleError, InvalidConstraintError

WRITTEN = Path(__file__).parent / "written"


class Part(nn.Module):
    def forward(self) -> None: ...


def part(size_bytes: int, *inside: str) -> nn.Module:
    module = Part()
    module.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.int8, device="meta"), requires_grad=False)
    for name in inside:
        module.add_module(name, nn.Identity())
    return module


def model(layers: int = 6, size_bytes: int = 20) -> nn.Module:
    """model.embed 10, layers of one size, head 30, a dropout that holds nothing."""
    root, inner = nn.Module(), nn.Module()
    inner.embed = part(10)
    inner.layers = nn.ModuleList(part(size_bytes, "act") for _ in range(layers))
    root.model, root.head, root.drop = inner, part(30), nn.Dropout()
    return root


def spread() -> Plan:
    return planner.plan(model(), max_memory={0: 70, 1: 45, "cpu": 1000}, strategy={"fill": "in_order"})


def lines(plan: Plan, name: str, **style: Any) -> list[str]:
    return planner.explain(plan, name, **style).splitlines()


# ---- Containers


def test_a_container_is_told_by_device_and_in_the_order_of_execution() -> None:
    plan = spread()
    runs = {key: plan.device_map[key] for key in plan.device_map}
    told = planner.explain(plan, "model.layers")
    assert len(set(plan.device_map.values())) == 3, runs
    assert told.startswith("model.layers has 6 blocks, 120 B, on ")
    for number in range(6):
        home = plan.device_map[f"model.layers.{number}"]
        word = {"cpu": "in RAM"}.get(str(home), f"on GPU {home}")
        assert any(covers(line, number) and word in line for line in told.splitlines()), (number, told)
    assert "pin" not in told, "120 bytes fit on no card"
    assert "ask for one of them, such as model.layers." in told


def covers(line: str, number: int) -> bool:
    found = re.match(r"  model\.layers\.(\d+)(?: to model\.layers\.(\d+))?: ", line)
    return found is not None and int(found[1]) <= number <= int(found[2] or found[1])


def test_the_root_is_called_the_model_and_bytes_by_device_add_up() -> None:
    # Runs come back to a device, so that devices have lines of their own.
    plan = planner.plan(model(), max_memory={0: 80, "cpu": 1000}, pin={"model.layers.2": "cpu", "head": 0})
    told = lines(plan, "")
    assert told[0] == f"The model has 8 blocks, 160 B, on {told[0].partition(', on ')[2]}"
    by_device = dict(re.findall(r"^  (RAM|GPU \d): \d+ blocks?, (\d+) B$", "\n".join(told), re.MULTILINE))
    used = {"RAM" if each.kind == "cpu" else f"GPU {each.id}": str(each.used_bytes) for each in plan.devices}
    assert by_device == used
    assert "In the order of execution:" in told


def test_a_container_on_one_device_says_so() -> None:
    plan = planner.plan(model(), max_memory={0: 1000, 1: 1000}, strategy={"fill": "in_order"})
    assert lines(plan, "model.layers")[0] == "model.layers has 6 blocks, 120 B, all of it on GPU 0."


def test_what_holds_nothing_is_said_to() -> None:
    (told, *_) = lines(spread(), "drop")
    assert told == "drop holds no tensors, so nothing is placed: it runs where its input is."
    assert lines(planner.plan(model(), max_memory={0: 1000}), "drop")[0].startswith("drop ")


def test_many_runs_are_few_lines() -> None:
    pins = {f"model.layers.{number}": "cpu" for number in range(0, 60, 2)}
    plan = planner.plan(model(60), max_memory={0: 10_000, "cpu": 10_000}, pin=pins)
    told = lines(plan, "model")
    assert len(told) < 24
    assert any(re.fullmatch(r"  and \d+ more runs\.", line) for line in told)


# ---- Blocks


def test_a_part_is_explained_by_its_block_one_reason_a_sentence_without_exact_bytes() -> None:
    plan = planner.plan(model(size_bytes=3 << 30), max_memory={0: "10GiB", "cpu": "64GiB"})
    offloaded = next(name for name, device in plan.device_map.items() if device == "cpu")
    told = planner.explain(plan, f"{offloaded}.act")
    assert told.splitlines()[0] == (
        f"{offloaded}.act lies in RAM and runs on GPU 0, as a part of the block {offloaded}."
    )
    assert f"  {offloaded} is offloaded: it takes 3 GiB of 64 GiB in RAM." in told.splitlines()
    assert not re.search(r"\d{7}", told), "no exact bytes"
    assert "cpu" not in told.partition("To move")[0]


def test_a_shell_is_told_what_a_shell_takes() -> None:
    plan = spread()
    assert lines(plan, "model.layers.5", style="shell")[-1].startswith(
        "To move model.layers.5, add --pin model.layers.5="
    )
    assert "pin={'model.layers.5': " in lines(plan, "model.layers.5")[-1]
    whole = planner.plan(model(), max_memory={0: 1000}, strategy="sequential")
    assert lines(whole, "head", style="shell")[-1].endswith("--set strategy=auto does.")
    odd = nn.ModuleDict({"a b;c": part(5), "d": part(5)})
    told = lines(planner.plan(odd, max_memory={0: 20, 1: 20}), "a b;c", style="shell")[-1]
    assert shlex.split(told.rstrip("."))[-1] in ("a b;c=0", "a b;c=1")


# ---- Names


@pytest.mark.parametrize("seed", range(40))
def test_every_name_of_a_drawn_model_is_explained_and_no_other_is(seed: int) -> None:
    rng = Random(seed)
    drawn = tree(rng)
    real = {
        *(name for name, _ in drawn.named_modules(remove_duplicate=False)),
        *(name for name, _ in drawn.named_parameters(remove_duplicate=False)),
        *(name for name, _ in drawn.named_buffers(remove_duplicate=False)),
    }
    total = sum(tensor.nbytes for tensor in [*drawn.parameters(), *drawn.buffers()]) + 8
    strategy = rng.choice(["auto", "sequential"])
    try:
        made = planner.plan(
            drawn, max_memory={0: total // 2, 1: total // 3, "cpu": total, "disk": total}, strategy=strategy
        )
    except InfeasibleError:
        return
    for plan in (made, Plan.from_json(made.to_json())):
        for name in real:
            told = planner.explain(plan, name)
            assert told.startswith(name or "The model")
            assert len(told.splitlines()) < 36
        for name in {f"{name}.x" for name in real} | {f"x{name}" for name in real}:
            with pytest.raises(InvalidConstraintError):
                planner.explain(plan, name)


def test_a_name_that_is_not_there_gets_the_nearest() -> None:
    plan = spread()
    for asked, suggestion in {
        "layers.3": "model.layers.3",
        "haed": "head",
        "model.layers.6": "model.layers.5",
        "model.layers.3.foo": "model.layers.3.act",
        "model.layer.2.act": "model.layers.2.act",
    }.items():
        with pytest.raises(InvalidConstraintError, match=f"did you mean '{suggestion}'") as caught:
            planner.explain(plan, asked)
        assert suggestion in caught.value.fields["suggestions"]


def test_a_plan_of_before_explains_what_it_can_tell() -> None:
    plan = Plan.from_json((WRITTEN / "plan-version-1.json").read_text())
    assert (
        lines(plan, "layers.1.w")[0]
        == "layers.1.w lies in RAM and runs on GPU 0, as a part of the block layers.1."
    )
    assert lines(plan, "layers")[0] == "layers has 4 blocks, on GPU 0, RAM and disk."
    with pytest.raises(InvalidConstraintError, match=r"did you mean 'layers\.\d'"):
        planner.explain(plan, "layer.1")


def test_names_that_a_terminal_would_obey_stay_in_their_line() -> None:
    odd = nn.Module()
    odd.add_module("red\x1b[31m\n", part(5))
    odd.add_module("plain", part(5))
    plan = planner.plan(odd, max_memory={0: 5, "cpu": 100})
    for name in ("", "red\x1b[31m\n", "plain"):
        assert all(line.isprintable() for line in lines(plan, name))


# ---- Tensors that count for other blocks


def homes_of(plan: Plan, model: nn.Module, name: str) -> set[str]:
    """Where tensors inside of a name lie, in words."""
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    found = set()
    for inner, _ in tensors:
        if not name or inner == name or inner.startswith(f"{name}."):
            key = inner
            while key and key not in plan.device_map:
                key = key.rpartition(".")[0]
            found.add({"cpu": "RAM"}.get(str(plan.device_map[key]), f"GPU {plan.device_map[key]}"))
    return found


def test_a_module_whose_tensors_all_count_elsewhere_lies_where_it_lies() -> None:
    """One object below two names is counted below the first."""
    root, shared = nn.Module(), nn.Module()
    shared.small, shared.large = part(10), part(40)
    root.first, root.second = nn.ModuleDict({"inner": shared}), nn.ModuleDict({"inner": shared})
    plan = planner.plan(root, max_memory={0: 45, 1: 45}, pin={"first.inner.small": 1, "first.inner.large": 0})
    assert homes_of(plan, root, "second") == {"GPU 0", "GPU 1"}
    for each in (plan, Plan.from_json(plan.to_json())):
        told = lines(each, "second")
        assert told[0] == "second has 2 blocks, no bytes that count here, on GPU 1 and GPU 0."
        assert told[1:3] == [
            "  second.inner.small: 1 block, no bytes that count here, on GPU 1",
            "  second.inner.large: 1 block, no bytes that count here, on GPU 0",
        ]


def test_a_module_of_which_a_part_is_tied_to_another_device_lies_on_both() -> None:
    root, head = nn.Module(), nn.Module()
    head.tied, head.own = part(16), part(48)
    root.embed, root.head = part(16), head
    head.tied.w = root.embed.w
    plan = planner.plan(root, max_memory={0: 40, 1: 48}, pin={"embed": 0, "head.own": 1})
    assert homes_of(plan, root, "head") == {"GPU 0", "GPU 1"}
    assert lines(plan, "head")[0] == "head has 2 blocks, 48 B, on GPU 0 and GPU 1."


@pytest.mark.parametrize("batch", range(4))
def test_no_home_of_a_drawn_module_is_left_out(batch: int) -> None:
    seen = 0
    for seed in range(batch * 100, batch * 100 + 100):
        rng = Random(seed)
        drawn = tree(rng)
        total = sum(tensor.nbytes for tensor in [*drawn.parameters(), *drawn.buffers()]) + 8
        budgets = {0: total // 3, 1: total // 3, "cpu": total}
        try:
            plan = planner.plan(
                drawn, max_memory=budgets, strategy=rng.choice(["auto", "sequential", "balanced"])
            )
        except InfeasibleError:
            continue
        for name, _ in drawn.named_modules(remove_duplicate=False):
            homes = homes_of(plan, drawn, name)
            told = lines(plan, name)[0].replace("GPUs 0-1", "GPU 0 and GPU 1")
            left_out = {home for home in homes if home not in told}
            assert not left_out, (seed, name, told)
            seen += len(homes) > 1
    assert seen > 20


# ---- Advice


def test_no_pin_is_advised_to_a_disk_that_nothing_could_run() -> None:
    """What is offloaded is to run on a cpu, and there is none."""
    drawn = model(4)
    plan = planner.plan(drawn, max_memory={0: 1000, "disk": 1000}, execute_offloaded="cpu")
    assert advised(plan, "model.layers.1") is None
    with pytest.raises(InfeasibleError):
        planner.plan(
            drawn, max_memory={0: 1000, "disk": 1000}, execute_offloaded="cpu", pin={"model.layers.1": "disk"}
        )


def advised(plan: Plan, name: str) -> dict[str, Any] | None:
    found = re.search(r"write pin=(\{.*\})\.$", planner.explain(plan, name))
    return eval(found[1]) if found else None  # what somebody would paste


@pytest.mark.parametrize("batch", range(6))
def test_over_drawn_plans_a_pin_that_is_advised_can_be_pasted(batch: int) -> None:
    given = 0
    for seed in range(batch * 40, batch * 40 + 40):
        rng = Random(seed)
        drawn = nn.Module()
        sizes = [rng.choice((5, 10, 20, rng.randint(1, 30))) for _ in range(rng.randint(2, 9))]
        for number, size in enumerate(sizes):
            drawn.add_module(f"part{number}", part(size))
        if rng.random() < 0.3:
            drawn.part1.w = drawn.part0.w
        names = [name for name, _ in drawn.named_children()]
        total = sum(sizes)
        budgets: dict[Any, int] = {
            card: rng.choice((0, 15, total // 3, total // 2)) for card in range(rng.randint(1, 3))
        }
        budgets["cpu"] = rng.choice((total // 2, total, 10 * total))
        if rng.random() < 0.5:
            budgets["disk"] = rng.choice((total, 10 * total))
        settings: dict[str, Any] = {
            "mode": rng.choice(("any", "any", "no_disk")),
            "headroom": {"all": rng.choice(("0%", "20%"))},
            "execute_offloaded": rng.choice(("accelerator", "accelerator", "cpu")),
            "staging_blocks": rng.choice((1, 1, 2)),
            "keep_together": [rng.sample(names, 2)] if rng.random() < 0.3 else [],
        }
        constraints: dict[str, Any] = {}
        if rng.random() < 0.2:
            constraints = {rng.choice(names): rng.choice(list(budgets))}
        try:
            plan = planner.plan(drawn, max_memory=budgets, pin=constraints, **settings)
        except (InfeasibleError, InvalidConstraintError):
            continue
        for name in names:
            pin = advised(plan, name)
            if pin is None:
                continue
            given += 1
            ((pinned, device),) = pin.items()
            moved = planner.plan(drawn, max_memory=budgets, pin={**constraints, **pin}, **settings)
            keys = moved.device_map
            assert keys.get(pinned, keys.get("")) == device, (seed, pin)
            assert plan.device_map.get(pinned, plan.device_map.get("")) != device
            assert planner.check(drawn, moved.device_map, max_memory=budgets) is not None
    assert given > 20


def test_json_of_a_plan_explains_the_same() -> None:
    plan = spread()
    back = Plan.from_json(json.dumps(json.loads(plan.to_json())))
    for name in ("", "model", "model.layers.3.act", "head"):
        assert planner.explain(back, name) == planner.explain(plan, name)


@pytest.mark.parametrize("setting", ["pin", "forbid", "no_split_modules", "keep_together", "special_dtypes"])
def test_settings_suggest_what_explain_suggests(setting: str) -> None:
    value: Any = {
        "pin": {"layers.3": 0},
        "forbid": {"layers.3": [0]},
        "no_split_modules": ["layers.3"],
        "keep_together": [["layers.3", "head"]],
        "special_dtypes": {"layers.3": "float32"},
    }[setting]
    with pytest.raises(InvalidConstraintError, match=r"did you mean 'model\.layers\.3'\?"):
        planner.plan(model(), max_memory={0: 1000}, **{setting: value})
