"""Plans in the words of other engines: what is emitted says the plan's split, by readers that agree with the engines' own code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from engine_readers import (
    counts_of,
    emitted_counts,
    in_runs,
    letters_of,
    llama_devices,
    option,
    sglang_default,
    visible,
    vllm_default,
)
from planner import Plan, export
from planner.devices.machine import Machine
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import InfeasibleError, InvalidInputError
from planner.export import Command
from planner.names import device_of
from planner.plans.stages import layer_of, stages_of
from small_llamas import size_of

CASES: dict[str, list[Any]] = json.loads((Path(__file__).parent / "engine_splits.json").read_text())
DRAWN = 60
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dtype": "float32",
}
PIPELINES = ("vllm", "sglang", "megatron", "tensorrt_llm", "torchtitan", "deepspeed")
HOST = Host(memory_bytes_per_s=5 * 10**10, flops_per_s=10**12)
CARDS = ("H100 80GB SXM", "RTX 4090", "RTX 3090", "L4")


def test_readers_agree_with_what_was_recorded_of_the_engines() -> None:
    for engine, default in (("vllm", vllm_default), ("sglang", sglang_default)):
        for text, layers, ranks, found in CASES[engine]:
            if text is None:
                assert found == counts_of(",".join(map(str, default(layers, ranks))), layers, ranks)
            elif isinstance(found, str):
                with pytest.raises(ValueError):
                    counts_of(text, layers, ranks)
            else:
                assert counts_of(text, layers, ranks) == found
    for layout, ranks, layers, extra, found in CASES["megatron"]:
        if isinstance(found, str):
            with pytest.raises(ValueError):
                letters_of(layout, ranks, layers, extra)
        else:
            assert letters_of(layout, ranks, layers, extra) == found
    for layers, on_cards, split, found in CASES["llama_cpp"]:
        assert in_runs(llama_devices(layers, on_cards, split)) == found


def llama(layers: int, vocab: int = 64, *, tied: bool = False) -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(**SIZES, num_hidden_layers=layers, vocab_size=vocab, tie_word_embeddings=tied)
        )


def mixtral(layers: int, vocab: int = 64) -> nn.Module:
    config = MixtralConfig(
        **SIZES, num_hidden_layers=layers, vocab_size=vocab, num_local_experts=4, num_experts_per_tok=1
    )
    with torch.device("meta"):
        return MixtralForCausalLM(config)


def drawn(seed: int, engine: str) -> Plan | None:
    """A plan of a drawn model for drawn cards, with a drawn strategy; None where none has room."""
    rng = Random(f"{engine} {seed}")
    layers = rng.randint(2, 20)
    vocab = rng.choice([16, 400, 3000])
    if engine == "llama_cpp" and rng.random() < 0.5:
        model = mixtral(layers, vocab)
    else:
        model = llama(layers, vocab, tied=engine not in ("torchtitan",) and rng.random() < 0.4)
    size, cards = size_of(model), rng.randint(2, 5)
    most = 0.3 if engine == "llama_cpp" else 1.5
    budgets: dict[int | str, int] = {at: int(size * rng.uniform(0.1, most)) for at in range(cards)}
    if engine == "llama_cpp":
        budgets["cpu"] = 3 * size
    machine = at_once(machine_of_cards({at: rng.choice(CARDS) for at in range(cards)}, HOST))
    strategy = {
        "type": rng.choice(["throughput", "pipeline", "latency"]),
        "order": rng.choice(["given", "any"]),
    }
    try:
        return planner.plan(model, max_memory=budgets, machine=machine, strategy=strategy, engine=engine)  # type: ignore[arg-type]
    except InfeasibleError:
        return None


def at_once(machine: Machine) -> Machine:
    """Without what starting anything takes, which would decide plans of models as small as these."""
    return Machine(
        devices=tuple(replace(each, launch_ps=None) for each in machine.devices),
        links=tuple(replace(each, latency_ps=None) for each in machine.links),
    )


def split_of(plan: Plan) -> list[tuple[Any, int]]:
    """By device, the layers whose attention it runs, in order: read from the device map alone."""
    devices = [device_of(f"model.layers.{at}.self_attn", plan.device_map) for at in range(plan.source.layers)]
    assert None not in devices
    return [(device, len(list(group))) for device, group in groupby(devices)]


def test_every_emitted_split_is_the_plan_s() -> None:
    """One plan is right for all engines of stages, whichever it was made for."""
    split, single = 0, 0
    for seed in range(DRAWN):
        plan = drawn(seed, PIPELINES[seed % len(PIPELINES)])
        if plan is None:
            continue
        made = Plan.from_json(plan.to_json())
        wanted = split_of(made)
        is_tied = any(note.startswith("counted at both ends") for note in made.source.notes)
        split, single = split + (len(wanted) > 1), single + (len(wanted) == 1)
        for engine in PIPELINES:
            if len(wanted) == 1 or (is_tied and engine == "torchtitan"):
                with pytest.raises(InvalidInputError, match=r"one stage|head is tied"):
                    getattr(export, engine)(made)
                continue
            command = getattr(export, engine)(made)
            counts = emitted_counts(engine, command, sum(count for _, count in wanted))
            assert counts == [count for _, count in wanted]
            assert min(counts) >= 1
            if engine != "deepspeed":
                assert visible(command, len(counts)) == [device for device, _ in wanted]
        ends = {"model.embed_tokens": wanted[0][0], "lm_head": wanted[-1][0], "model.norm": wanted[-1][0]}
        assert all(device_of(name, made.device_map) == device for name, device in ends.items())
    assert split >= 20 and single >= 1


def test_every_split_for_llama_cpp_is_the_plan_s() -> None:
    emitted, apart, partly = 0, 0, 0
    for seed in range(DRAWN):
        plan = drawn(seed, "llama_cpp")
        if plan is None:
            continue
        wanted, command = split_of(plan), export.llama_cpp(plan)
        layers = sum(count for _, count in wanted)
        on_cards = int(option(command, "-ngl"))
        split = (
            [int(each) for each in option(command, "-ts").split(",")] if "-ts" in command.args else [on_cards]
        )
        cards = visible(command, len(split)) if command.env else []
        found = [cards[each] if each >= 0 else "cpu" for each in llama_devices(layers, on_cards, split)]
        devices = [device for device, count in wanted for _ in range(count)]
        assert found == [*devices, device_of("lm_head", plan.device_map)]
        assert sum(split) == on_cards and min(split) >= 1
        assert device_of("model.embed_tokens", plan.device_map) == "cpu"
        assert on_host(command, layers, plan) == beside(plan, devices)
        emitted, apart = emitted + 1, apart + bool(beside(plan, devices))
        partly += on_cards <= layers
    assert emitted >= 30 and apart >= 5 and partly >= 10


def beside(plan: Plan, devices: list[Any]) -> set[int]:
    """Layers of a card whose MLP or experts are on the host."""
    found = set()
    for name, device in plan.device_map.items():
        place = layer_of(name)
        if place is not None and device == "cpu" and devices[place[1]] != "cpu":
            assert name.endswith((".mlp", ".mlp.experts"))
            found.add(place[1])
    return found


def on_host(command: Command, layers: int, plan: Plan) -> set[int]:
    """Layers of a card of which llama.cpp leaves that on the host, by the names that it gives to tensors."""
    is_mixture = "model.layers.0.mlp.experts" in plan.names
    tensor = "ffn_up_exps.weight" if is_mixture else "ffn_up.weight"
    found = set[int]()
    for short in ("--n-cpu-moe", "--n-cpu-ffn"):
        if short in command.args:
            assert (short == "--n-cpu-moe") == is_mixture
            found |= set(range(int(option(command, short))))
    for at, arg in enumerate(command.args):
        if arg == "-ot":
            pattern, _, kind = command.args[at + 1].partition("=")
            assert kind == "CPU" and "," not in pattern
            found |= {layer for layer in range(layers) if re.search(pattern, f"blk.{layer}.{tensor}")}
            assert not any(re.search(pattern, f"blk.{layer}.attn_q.weight") for layer in range(layers))
    first_on_card = layers + 1 - int(option(command, "-ngl"))
    return {layer for layer in found if layer >= first_on_card}


def on_two(model: nn.Module, **settings: Any) -> Plan:
    size = size_of(model)
    return planner.plan(model, max_memory={0: size, 1: size, 2: size, "cpu": size}, **settings)


def mapped(model: nn.Module, device_map: dict[str, Any]) -> Plan:
    """A plan whose map was written by hand."""
    return Plan.from_json(json.dumps({**json.loads(on_two(model).to_json()), "device_map": device_map}))


def whole(layers: int, *devices: Any, first: Any = None, last: Any = None) -> dict[str, Any]:
    ends = {
        "model.embed_tokens": devices[0] if first is None else first,
        **{f"model.layers.{at}": devices[at] for at in range(layers)},
    }
    last = devices[-1] if last is None else last
    return {**ends, "model.norm": last, "model.rotary_emb": last, "lm_head": last}


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "one stage": (whole(4, 0, 0, 0, 0), "one stage"),
    "an offloaded layer": (whole(4, 0, 0, "cpu", 1), "rests on cpu"),
    "a layer on disk": (whole(4, 0, 0, "disk", 1), "rests on disk"),
    "a device twice": (whole(4, 0, 1, 0, 1), "two runs"),
    "the embedding elsewhere": (whole(4, 0, 0, 1, 1, first=1), "runs with the first of them"),
    "the head elsewhere": (whole(4, 0, 0, 1, 1, last=2), "runs with the last of them"),
}


@pytest.mark.parametrize("engine", PIPELINES)
@pytest.mark.parametrize("case", list(HOSTILE))
def test_plans_that_are_no_pipeline_are_refused_with_what_mends_them(engine: str, case: str) -> None:
    device_map, said = HOSTILE[case]
    with pytest.raises(InvalidInputError, match=said) as caught:
        getattr(export, engine)(mapped(llama(4), device_map))
    assert f"engine={engine!r}" in caught.value.message or case == "one stage"


@pytest.mark.parametrize("engine", PIPELINES)
def test_a_cut_inside_of_a_layer_is_refused(engine: str) -> None:
    written, layer = json.loads(on_two(llama(4)).to_json()), "model.layers.2"
    parts = {f"{layer}.{name}": 1 for name in ("self_attn", "input_layernorm", "post_attention_layernorm")}
    parts |= {f"{layer}.mlp": 0}
    written["device_map"] = {
        name: where for name, where in whole(4, 0, 0, 1, 1).items() if name != layer
    } | parts
    blocks = {name: size for name, size in written["block_bytes"].items() if name != layer}
    written["block_bytes"] = blocks | dict.fromkeys(parts, 1)
    with pytest.raises(InvalidInputError, match=f"is cut.*engine={engine!r}"):
        getattr(export, engine)(Plan.from_json(json.dumps(written)))


def test_more_stages_than_layers_are_no_plan_and_no_export() -> None:
    model = llama(2)
    size = size_of(model)
    plan = planner.plan(
        model,
        max_memory=dict.fromkeys(range(6), size),
        machine=machine_of_cards(dict.fromkeys(range(6), "L4"), HOST),
        strategy="throughput",
        engine="vllm",
    )
    assert stages_of(plan, "vllm").counts == (1, 1)  # one layer at least
    with pytest.raises(InvalidInputError, match="runs with the first of them"):
        export.vllm(mapped(model, whole(2, 1, 2, first=0)))
    with pytest.raises(InfeasibleError, match="as the engine has them"):
        planner.plan(
            model,
            max_memory=dict.fromkeys(range(6), size // 6 + 1),
            machine=machine_of_cards(dict.fromkeys(range(6), "L4"), HOST),
            strategy="throughput",
            engine="vllm",
        )


def test_layers_that_only_predict_further_tokens_are_with_the_last_stage_or_refused() -> None:
    """A checkpoint may hold one layer more than its configuration counts."""
    model = llama(5)
    model.config.num_hidden_layers = 4
    machine = machine_of_cards({0: "L4", 1: "L4"}, HOST)
    size = size_of(model)
    plan = planner.plan(
        model, max_memory={0: size, 1: size}, machine=machine, strategy="throughput", engine="megatron"
    )
    assert stages_of(plan, "megatron").counts == (3, 1)
    command = export.megatron(plan)
    assert letters_of(option(command, "--pipeline-model-parallel-layout"), 2, 4, 1) == ["Ettt", "tmL"]
    assert export.vllm(plan).env["VLLM_PP_LAYER_PARTITION"] == "3,1"
    with pytest.raises(InvalidInputError, match="torchtitan has no name"):
        export.torchtitan(plan)
    apart = Plan.from_json(
        json.dumps({**json.loads(plan.to_json()), "device_map": whole(5, 0, 0, 1, 1, 0, last=1)})
    )
    with pytest.raises(InvalidInputError, match="only predicts further tokens"):
        export.vllm(apart)


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        (whole(4, 0, 0, 1, 1), "keeps it on the host"),
        (whole(4, 0, 0, "cpu", "cpu", first="cpu", last=0), "come behind some on a card"),
        (whole(4, 0, 1, 0, 1, first="cpu"), "two runs"),
        (whole(4, 0, 0, 1, "disk", first="cpu", last=1), "disk"),
    ],
)
def test_plans_that_llama_cpp_cannot_have_are_refused(device_map: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        export.llama_cpp(mapped(llama(4), device_map))


def test_a_head_on_the_host_with_cards_before_it_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="cannot have this plan"):
        export.llama_cpp(mapped(llama(4), whole(4, 0, 0, 1, 1, first="cpu", last="cpu")))


def test_models_without_one_list_of_layers_are_refused() -> None:
    two = nn.ModuleDict({name: nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for name in ("one", "other")})
    machine = machine_of_cards({0: "L4", 1: "L4"}, HOST)
    for model in (two, nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})):
        with pytest.raises(InvalidInputError, match=r"list|lists"):
            planner.plan(
                model,
                max_memory={0: 10_000, 1: 10_000},
                machine=machine,
                strategy="throughput",
                model={"hidden_size": 8},
                engine="vllm",
            )
        with pytest.raises(InvalidInputError, match="list"):
            export.vllm(planner.plan(model, max_memory={0: 900, 1: 900}))


def test_commands_are_quoted_for_a_shell_and_have_a_line_for_each_thing() -> None:
    command = Command(env={"A": "1,2"}, args=("serve", "a b;rm"), files={"f": "x\n"}, notes=("n",))
    assert command.line == "A=1,2 serve 'a b;rm'"
    assert command.text.splitlines() == [command.line, "# f:", "x", "# n"]


def test_what_a_plan_s_file_says_cannot_become_a_line_of_its_own() -> None:
    """Names and formats are texts of whoever wrote the file."""
    data = json.loads(mapped(llama(4), whole(4, 0, 0, 1, 1, first="cpu")).to_json())
    data["source"] |= {"kind": "checkpoint", "name": "x; rm -rf ~\n", "format": "fp8\nrm -rf ~"}
    hostile = Plan.from_json(json.dumps(data))
    lines = export.llama_cpp(hostile).text.splitlines()
    assert len(lines) == 3 and all(line.startswith("# ") for line in lines[1:])
    staged = Plan.from_json(json.dumps(data | {"device_map": whole(4, 0, 0, 1, 1)}))
    assert "vllm serve 'x; rm -rf ~\n'" in export.vllm(staged).line


def test_hugging_face_gets_the_map_itself() -> None:
    plan = mapped(llama(4), whole(4, 0, 0, "cpu", "cpu"))
    assert json.loads(export.huggingface(plan).files["device_map.json"]) == plan.device_map


EMITTERS: dict[str, Callable[[Plan], Command]] = {
    name: getattr(export, name) for name in (*PIPELINES, "llama_cpp", "huggingface")
}


def test_an_old_plan_without_blocks_is_refused_where_it_does_not_tell_its_layers() -> None:
    plan = on_two(llama(4))
    data = json.loads(plan.to_json())
    data |= {"block_bytes": {}, "reasons": [], "device_map": {"": 0}}
    for engine, emit in EMITTERS.items():
        if engine != "huggingface":
            with pytest.raises(InvalidInputError):
                emit(Plan.from_json(json.dumps(data)))


def test_stages_are_frozen() -> None:
    plan = on_two(llama(4))
    stages = stages_of(
        Plan.from_json(json.dumps({**json.loads(plan.to_json()), "device_map": whole(4, 0, 0, 0, 1)})), "vllm"
    )
    assert stages.counts == (3, 1) and stages.extra == 0
    assert replace(stages, list_name="x").counts == (3, 1)
