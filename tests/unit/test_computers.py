"""Plans over devices of several computers: pipelines with a process for each stage, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import Machine, Plan, export
from planner.devices.nodes import in_order
from planner.devices.rate import Rate
from planner.devices.table_machine import machine_of_cards
from planner.errors import InvalidDevicesError, InvalidInputError

PAIR = machine_of_cards({0: "RTX 4090", 1: "RTX 4090"})
BETWEEN, LATENCY = Rate.of_user(10**10), Rate.of_user(10**7)
BOTH = Machine.of_nodes({"a": PAIR, "b": PAIR}, between=BETWEEN, latency=LATENCY)


def llama(layers: int = 8) -> nn.Module:
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=layers,
        vocab_size=1000,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def planned(model: nn.Module | None = None, machine: Machine = BOTH, **settings: Any) -> Plan:
    return planner.plan(model or llama(), machine=machine, **{"strategy": "throughput", **settings})


def test_a_machine_of_several_computers_is_all_that_is_said() -> None:
    plan = planned()
    assert [device.id for device in plan.devices] == ["a/0", "a/1", "b/0", "b/1"]
    assert {device.origin for device in plan.devices} == {"the machine's memory_bytes"}
    assert all(10 * each.headroom_bytes >= (each.budget_bytes or 0) - 10 for each in plan.devices)
    assert plan.timing is not None and [stage.device for stage in plan.timing.stages] == [
        "a/0",
        "a/1",
        "b/0",
        "b/1",
    ]
    assert Plan.from_json(plan.to_json()) == plan
    assert planner.price(llama(), plan, machine=BOTH).bottleneck_ps == plan.timing.bottleneck_ps


def test_what_passes_between_computers_costs_what_its_links_say() -> None:
    plan = planned()
    assert plan.timing is not None
    sizes = 256 * 4
    hops = [BOTH.route(*pair).copy_ps(sizes) for pair in (("a/0", "a/1"), ("a/1", "b/0"), ("b/0", "b/1"))]
    assert plan.timing.latency_ps == sum(stage.ps for stage in plan.timing.stages) + sum(hops)
    assert BOTH.route("a/1", "b/0").rule == "through a/cpu and b/cpu" and hops[1] > hops[0]


def test_the_summary_ends_with_what_starts_it() -> None:
    last = planned().summary().splitlines()[-2:]
    start = "torchrun --nnodes 2 --node-rank {} --nproc-per-node 2 --rdzv-endpoint HOST:29500 generate.py"
    assert last == [f"on a: {start.format(0)}", f"on b: {start.format(1)}"]
    size = 2 * sum(each.nbytes for each in llama().parameters())
    one = planned(machine=PAIR, max_memory={0: size, 1: size})
    assert one.summary().splitlines()[-1] == "torchrun --nproc-per-node 2 generate.py"
    turned = planned(
        machine=PAIR,
        max_memory={0: size, 1: size},
        pin={"lm_head": 0, "model.embed_tokens": 1},
        strategy={"type": "throughput", "order": "any"},
    )
    assert turned.summary().splitlines()[-1] == "torchrun --nproc-per-node 2 generate.py"
    for other in (planned(engine="vllm"), planned(machine=PAIR, max_memory={0: size})):
        assert "torchrun" not in other.summary()


def test_budgets_name_the_computer_in_any_spelling_and_stand_in_order() -> None:
    plan = planned(max_memory={"b/0": "1GiB", "a/cuda:1": "1GiB", "a/0": "1GiB"})
    assert [device.id for device in plan.devices] == ["a/0", "a/1", "b/0"]
    assert plan.devices[0].kind == "accelerator"
    assert in_order(["n10/0", "n9/11", "n9/2", "a/0"]) == ["a/0", "n9/2", "n9/11", "n10/0"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_memory": {"a/0": "1GiB", 1: "1GiB"}}, "of no computer"),
        ({"max_memory": {"a/0": "1GiB", "a/cpu": "1GiB"}}, "nothing is offloaded"),
        ({"max_memory": {"a/0": "1GiB", "b/disk": "1GiB"}}, "nothing is offloaded"),
        ({"max_memory": {"a/0": "1GiB"}, "strategy": "auto"}, "strategy='throughput'"),
        ({"max_memory": {"a/0": "1GiB"}, "strategy": "balanced"}, "strategy='throughput'"),
        ({"max_memory": {"z/0": "1GiB"}}, "no device z/0"),
    ],
)
def test_what_no_plan_over_computers_has_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDevicesError, match=said):
        planned(**settings)


def test_a_machine_that_does_not_say_what_a_device_has_is_refused() -> None:
    data = json.loads(BOTH.to_json())
    del data["devices"][0]["memory_bytes"]
    with pytest.raises(InvalidDevicesError, match="memory_bytes of device a/0"):
        planned(machine=Machine.from_data(data))


def test_one_process_refuses_such_a_plan_by_name() -> None:
    plan, model = planned(), llama()
    with pytest.raises(InvalidDevicesError, match=r"a/0.*planner.pipeline"):
        planner.dispatch(model, plan)
    with pytest.raises(InvalidDevicesError, match=r"a/0.*planner.pipeline"):
        planner.infer_auto_device_map(model, max_memory={"a/0": 1000})
    with pytest.raises(InvalidInputError, match="several computers"):
        export.huggingface(plan)
    assert not planner.is_valid(planner.check(model, plan.device_map))


def test_engines_are_told_of_several_computers() -> None:
    command = export.vllm(planned(engine="vllm"))
    assert command.args[-6:] == ("--nnodes", "2", "--node-rank", "0", "--master-addr", "HOST")
    assert any("set on every computer" in note for note in command.notes)
    uneven = planned(max_memory={"a/0": "1GiB", "a/1": "1GiB", "b/0": "1GiB"})
    for emit in (export.vllm, export.sglang):
        with pytest.raises(InvalidInputError, match="a 2, b 1"):
            emit(uneven)
    assert export.megatron(uneven).notes[0].endswith("a/0, a/1, b/0")
    with pytest.raises(InvalidInputError, match=r"keeps it on the host|one computer"):
        export.llama_cpp(uneven)


def test_computers_are_joined_with_their_hosts() -> None:
    without_host = Machine(devices=PAIR.devices[:2])
    with pytest.raises(InvalidDevicesError, match="no host"):
        Machine.of_nodes({"a": without_host}, between=BETWEEN)
    with pytest.raises(InvalidInputError, match="several computers already"):
        Machine.of_nodes({"a": BOTH}, between=BETWEEN)
    assert Machine.from_json(BOTH.to_json()) == BOTH


@pytest.mark.parametrize("workload", [None, {"context_length": 64, "batch_size": 2}])
@pytest.mark.parametrize("maximise", ["speed", "cache"])
def test_the_plan_s_file_is_as_its_schema_says(workload: Any, maximise: str) -> None:
    if workload is None and maximise == "cache":
        return
    schema = json.loads((Path(__file__).parents[2] / "docs/plan.schema.json").read_text())
    plan = planned(
        workload=workload, strategy={"type": "throughput", "maximise": maximise}, pin={"lm_head": "b/1"}
    )
    jsonschema.validate(json.loads(plan.to_json()), schema)
    assert Plan.from_json(plan.to_json()) == plan
    if workload is not None:
        assert set(plan.predicted_peaks["prefill"]) >= {"a/0", "b/1"}
