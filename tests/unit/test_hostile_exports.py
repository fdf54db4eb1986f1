"""Plans that were edited, or are of unusual models, say what they say to an engine, or are refused: never something else."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import planner
from gguf_files import GgufTensors, write_gguf
from planner import Machine, Plan, export
from planner.devices.nodes import local_device
from planner.devices.rate import Rate
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import InfeasibleError, InvalidInputError
from planner.export import Command
from planner.names import device_of

LAYERS = 4
PAIR = machine_of_cards(
    {0: "RTX 4090", 1: "RTX 4090"}, Host(memory_bytes_per_s=5 * 10**10, flops_per_s=10**12)
)
BETWEEN = Rate.of_user(10**10)
BOTH = Machine.of_nodes({"a": PAIR, "b": PAIR}, between=BETWEEN)


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_attention_heads=4, num_hidden_layers=LAYERS, vocab_size=64
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def whole(*devices: Any, first: Any = None) -> dict[str, Any]:
    ends = {"model.embed_tokens": devices[0] if first is None else first}
    layers = {f"model.layers.{at}": device for at, device in enumerate(devices)}
    return ends | layers | dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head"), devices[-1])


def edited(device_map: Mapping[str, Any], **more: Any) -> Plan:
    room = dict.fromkeys((0, 1, "cpu"), 10**7)
    data = json.loads(planner.plan(llama(), max_memory=room).to_json())
    return Plan.from_json(json.dumps({**data, "device_map": device_map, **more}))


def with_part_on_the_host(part: str) -> Plan:
    """All on card 0 but the embedding and one part of layer 2."""
    layer = "model.layers.2"
    parts = {
        f"{layer}.{name}": "cpu" if name == part else 0
        for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    }
    device_map = dict[str, Any]()
    for name, device in whole(0, 0, 0, 0, first="cpu").items():
        device_map |= parts if name == layer else {name: device}
    return edited(device_map, block_bytes=dict.fromkeys(device_map, 1))


def test_llama_cpp_is_told_of_an_mlp_on_the_host_and_of_nothing_else_as_if_it_were_one() -> None:
    assert r"blk\.(2)\.ffn_(up|down|gate)\.=CPU" in export.llama_cpp(with_part_on_the_host("mlp")).args
    for part in ("self_attn", "input_layernorm"):
        with pytest.raises(InvalidInputError, match=f"{part}.*whole MLP.*'parts': False"):
            export.llama_cpp(with_part_on_the_host(part))


def test_half_of_an_mlp_on_the_host_is_refused_with_what_mends_it() -> None:
    """OPT's layers have no module around the two matrices of their MLP."""
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=64,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        num_hidden_layers=6,
    )
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    size = sum(each.nbytes for each in model.parameters())
    machine = Machine(
        devices=tuple(replace(each, launch_ps=None) for each in PAIR.devices),
        links=tuple(replace(each, latency_ps=None) for each in PAIR.links),
    )
    refused = 0
    for share in range(20, 70, 5):
        room: dict[Any, int] = {0: size * share // 100, "cpu": 3 * size}
        asked: dict[str, Any] = {"max_memory": room, "machine": machine, "engine": "llama_cpp"}
        plan = planner.plan(model, strategy="latency", **asked)
        halves = {name for name, device in plan.device_map.items() if device == "cpu" and ".fc" in name}
        if not halves:
            continue
        refused += 1
        with pytest.raises(InvalidInputError, match="cannot have this plan"):
            export.llama_cpp(plan)
        whole_layers = planner.plan(model, strategy={"type": "latency", "parts": False}, **asked)
        assert not any(arg in export.llama_cpp(whole_layers).args for arg in ("-ot", "--n-cpu-ffn"))
    assert refused > 0


def test_a_device_map_for_one_process_has_devices_of_one() -> None:
    assert (
        json.loads(export.huggingface(edited(whole(0, 0, 1, 1), devices=[])).files["max_memory.json"]) == {}
    )
    with pytest.raises(InvalidInputError, match="several computers"):
        export.huggingface(edited(whole("a/0", "a/0", "b/0", "b/0")))


def test_the_host_of_another_computer_is_no_stage() -> None:
    with pytest.raises(InvalidInputError, match="rests on a/cpu"):
        export.megatron(edited(whole("a/cpu", "a/cpu", "b/0", "b/0")))


@pytest.mark.parametrize("said", [-1, 0, LAYERS])
def test_layers_are_those_of_the_plan_unless_the_configuration_counts_fewer(said: int) -> None:
    plan = edited(whole(0, 0, 1, 1))
    settings = json.loads(plan.to_json())["settings"]
    number = {"model.num_hidden_layers": {"value": said, "rank": "user"}}
    counted = edited(whole(0, 0, 1, 1), settings=settings | number)
    assert export.vllm(counted).env["VLLM_PP_LAYER_PARTITION"] == "2,2"
    number["model.num_hidden_layers"]["value"] = LAYERS + 8
    with pytest.raises(InvalidInputError, match=r"counts 12 layers.* has 4"):
        export.vllm(edited(whole(0, 0, 1, 1), settings=settings | number))


HOSTILE = ("--help", "-x y", "a b'c\"$(id)`id`\n\\é", "~/model", "a;b|c&d>e*?[x]{y,z}", "$HOME", "!!", "a=b")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("emit", [export.vllm, export.sglang, export.tensorrt_llm])
def test_a_model_s_name_is_one_word_of_a_shell_and_no_option(name: str, emit: Any) -> None:
    plan = edited(whole(1, 1, 0, 0))
    source = {**json.loads(plan.to_json())["source"], "kind": "checkpoint", "name": name}
    command: Command = emit(edited(whole(1, 1, 0, 0), source=source))
    first = (
        command.args.index("serve" if "serve" in command.args else "--model-path")
        if emit is not export.tensorrt_llm
        else 0
    )
    model = command.args[first + 1]
    assert model in (name, f"./{name}") and not model.startswith("-")
    words = " ".join(map(shlex.quote, command.args))
    assert command.line.endswith(words)
    line = (
        command.line.removesuffix(words) + 'sh -c \'printf "%s\\0" "$CUDA_VISIBLE_DEVICES" "$@"\' sh ' + words
    )
    said = subprocess.run(["sh", "-c", line], capture_output=True, check=True, text=True).stdout
    assert said.split("\0")[:-1] == ["1,0", *command.args]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "ü", "a'$(x)", "x" * 65])
def test_a_computer_has_a_name_that_a_budget_can_say(name: str) -> None:
    with pytest.raises(InvalidInputError, match="a computer's name"):
        Machine.of_nodes({name: PAIR}, between=BETWEEN)


def test_what_the_allocator_may_take_counts_on_every_computer() -> None:
    model, workload, room = llama(), {"context_length": 64, "batch_size": 2}, 10**9
    far, near = (
        planner.plan(
            model,
            machine=machine,
            max_memory={f"{node}{at}": room for at in (0, 1)},
            strategy="throughput",
            engine="vllm",
            workload=workload,
        )
        for machine, node in ((BOTH, "a/"), (PAIR, ""))
    )
    for one, other in zip(far.devices, near.devices, strict=True):
        assert local_device(one.id) == other.id
        assert replace(one, id=other.id) == other
    assert near.devices[0].headroom_bytes == far.devices[0].headroom_bytes


def test_what_would_help_several_computers_is_nothing_that_they_refuse() -> None:
    with pytest.raises(InfeasibleError) as caught:
        planner.plan(llama(), machine=BOTH, max_memory={"a/0": 10_000, "b/0": 10_000}, strategy="throughput")
    assert "more room or another device" in caught.value.message and "auto" not in caught.value.message


def engine_room(model: nn.Module) -> dict[str, Any]:
    size = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    return {"max_memory": {0: size, 1: size}, "machine": PAIR, "strategy": "throughput"}


@pytest.mark.parametrize(
    ("together", "counts"),
    [
        (("model.layers.0", "model.layers.2"), "3,1"),
        (("model.layers.1", "model.layers.2"), "3,1"),
        (("model.layers.2", "lm_head"), "2,2"),
    ],
)
def test_what_is_kept_together_is_in_one_stage(together: tuple[str, ...], counts: str) -> None:
    model = llama()
    plan = planner.plan(model, engine="vllm", keep_together=[list(together)], **engine_room(model))
    devices = {device for name, device in plan.device_map.items() if name in together}
    assert len(devices) == 1
    found = export.vllm(plan).env["VLLM_PP_LAYER_PARTITION"]
    assert found == counts or sorted(found) == sorted(counts)


def test_ends_that_are_kept_together_leave_one_stage() -> None:
    model = llama()
    ends = [["model.embed_tokens", "lm_head"]]
    plan = planner.plan(model, engine="vllm", keep_together=ends, **engine_room(model))
    assert len(set(plan.device_map.values())) == 1
    half = {at: size // 2 for at, size in engine_room(model)["max_memory"].items()}
    with pytest.raises(InfeasibleError):
        planner.plan(model, engine="vllm", keep_together=ends, **{**engine_room(model), "max_memory": half})


def test_layers_that_are_run_several_times_are_planned_for_no_engine() -> None:
    model = llama()
    model.config.num_hidden_layers = 3 * LAYERS
    with pytest.raises(InvalidInputError, match=r"counts 12 layers.* has 4"):
        planner.plan(model, engine="vllm", **engine_room(model))


def test_a_plan_over_several_computers_is_judged_as_one_process_by_name() -> None:
    model = llama()
    plan = planner.plan(model, machine=BOTH, strategy="throughput")
    found = planner.check(model, plan.device_map)
    assert found and all("several computers" in finding.message for finding in found)


def test_what_a_plan_by_time_says_of_room_is_the_budget() -> None:
    model = llama()
    plan = planner.plan(model, **engine_room(model))
    budgets = {device.id: device.budget_bytes for device in plan.devices}
    assert plan.reasons and all(each.available_bytes == budgets[each.device] for each in plan.reasons)
    assert "no limit" not in str(planner.explain(plan, "model.layers.1"))


@pytest.mark.parametrize(
    ("own", "extra"), [("mtp.layers.0", 1), ("mtp.layers.1", 2), ("model.mtp_layers.0", 1), ("mtp.block", 1)]
)
def test_layers_in_a_list_of_their_own_that_predict_further_tokens_are_told(
    tmp_path: Path, own: str, extra: int
) -> None:
    """Checkpoints have them where transformers has no module for them, so that they may be one block."""
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_hidden_layers=LAYERS,
            vocab_size=64,
        )
    )
    layer = {f"{own}.{name}": each.clone() for name, each in model.model.layers[0].state_dict().items()}
    if extra == 2:
        layer |= {name.replace(".1.", ".0.", 1): each.clone() for name, each in layer.items()}
    model.config.save_pretrained(tmp_path)
    save_file(model.state_dict() | layer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    room = dict.fromkeys((0, 1), 2 * sum(each.nbytes for each in model.parameters()))
    plan = planner.plan(tmp_path, max_memory=room, machine=PAIR, strategy="throughput", engine="megatron")
    made = export.megatron(Plan.from_json(plan.to_json()))
    assert made.args[:2] == ("--mtp-num-layers", str(extra))
    assert made.args[-1].endswith(f"{'m' if extra == 1 else 'm*2'}L")
    with pytest.raises(InvalidInputError, match=f"the {extra} layers"):
        export.torchtitan(plan)
    on_host = planner.plan(
        tmp_path, max_memory={**room, "cpu": room[0]}, machine=PAIR, strategy="throughput", engine="llama_cpp"
    )
    assert any("the GGUF must have none" in note for note in export.llama_cpp(on_host).notes)


def test_llama_cpp_counts_layers_beyond_those_of_the_configuration_and_says_it() -> None:
    settings = json.loads(edited(whole(0, 0, 1, 1)).to_json())["settings"]
    settings["model.num_hidden_layers"] = {"value": LAYERS - 1, "rank": "user"}
    command = export.llama_cpp(edited(whole(0, 0, 1, 1, first="cpu"), settings=settings))
    assert command.args[command.args.index("-ngl") + 1] == str(LAYERS + 1)
    assert any(note.startswith("-ngl counts 1 layers") for note in command.notes)


def test_tensors_of_a_gguf_on_the_host_are_said_by_their_own_names(tmp_path: Path) -> None:
    """Each expert matrix is a tensor there, and a plan may leave any of them on the host."""
    wide, layers, experts = 256, 6, ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps")
    tensors: GgufTensors = {
        "token_embd.weight": ("Q4_K", (wide, 512)),
        "output.weight": ("Q4_K", (wide, 512)),
    }
    tensors["output_norm.weight"] = ("F32", (wide,))
    for at in range(layers):
        tensors |= {
            f"blk.{at}.attn_{name}.weight": ("Q4_K", (wide, wide)) for name in ("q", "k", "v", "output")
        }
        tensors |= {f"blk.{at}.{name}.weight": ("Q4_K", (wide, wide, 4)) for name in experts}
        tensors[f"blk.{at}.ffn_gate_inp.weight"] = ("F32", (wide, 4))
    facts: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": layers}
    facts |= {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.embedding_length": wide}
    path = write_gguf(tmp_path / "tiny-Q4_K_M.gguf", tensors, facts)
    devices = tuple(replace(each, launch_ps=None) for each in PAIR.devices)
    links = tuple(replace(each, latency_ps=None) for each in PAIR.links)
    apart = 0
    for share in (20, 30, 45, 60):
        room = path.stat().st_size * share // 100
        plan = planner.plan(
            path,
            max_memory={0: room, 1: room, "cpu": 10**8},
            machine=Machine(devices=devices, links=links),
            strategy="latency",
            engine="llama_cpp",
            model={"hidden_size": wide},
        )
        command = export.llama_cpp(plan)
        said = [
            command.args[at + 1].removesuffix("=CPU") for at, arg in enumerate(command.args) if arg == "-ot"
        ]
        first = layers + 1 - int(command.args[command.args.index("-ngl") + 1])
        for name in (name for name in tensors if name.startswith("blk.")):
            is_on_host = int(name.split(".")[1]) < first or any(re.search(each, name) for each in said)
            assert is_on_host == (device_of(name, plan.device_map) == "cpu"), name
        apart += bool(said)
    assert apart > 1
