"""`planner plan`, `check` and `sizes`: what they say of a model on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import planner
from command_line import Command, answer, llama_bytes, tensor_shapes, write_llama
from planner.plans.columns import one_size
from planner.plans.wording import first_device_of
from planner.units import format_bytes

ROOM = ("-d", "0=4KiB", "-d", "cpu=1MiB")


def test_the_plan_is_the_one_that_the_library_makes(command: Command, llama: str) -> None:
    done = command("plan", llama, *ROOM, "--json")
    assert done.exit_code == 0
    made = planner.plan(llama, max_memory={0: "4KiB", "cpu": "1MiB"})
    printed = planner.Plan.from_json(done.stdout)
    assert printed.device_map == made.device_map
    assert printed.devices == made.devices
    assert printed.provenance["max_memory.0"] == "user · command line argument 1 `-d 0=4KiB`"
    assert printed.source.kind == "checkpoint"


def test_the_picture_names_devices_and_bytes(command: Command, llama: str) -> None:
    done = command("plan", llama, *ROOM)
    assert done.exit_code == 0
    name, verdict, *rest = done.stdout.splitlines()
    assert name.startswith("llama  bfloat16, ") and one_size(llama_bytes()) in name
    assert verdict.startswith("Does not fit on GPU 0: ")
    for place in ("GPU 0", "RAM"):
        assert any(line.strip().startswith(place) for line in rest)
    assert "\x1b" not in done.output


def test_files_are_written_where_they_are_asked_for(command: Command, llama: str) -> None:
    done = command("plan", llama, *ROOM, "--json", "-o", "plan.json", "--html", "report.html")
    assert Path("plan.json").read_text() == done.stdout
    page = Path("report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert '"lm_head"' in page


@pytest.mark.parametrize("option", ["-o", "--html"])
def test_a_file_that_cannot_be_written_is_bad_input(command: Command, llama: str, option: str) -> None:
    done = command("plan", llama, *ROOM, option, "absent/plan.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("planner: absent/plan.json: cannot be written")


def test_what_does_not_fit_is_a_negative_answer(command: Command, llama: str) -> None:
    done = command("plan", llama, "-d", "0=4KiB")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1].startswith("Does not fit: ")
    assert "To make it fit" in done.stdout
    missing = llama_bytes() - (4 << 10)
    assert "more on GPU 0 would be enough" in done.stderr
    error = answer(command("plan", llama, "-d", "0=4KiB", "--json"))["error"]
    assert (error["type"], error["exit_code"]) == ("InfeasibleError", 1)
    assert error["fields"]["more_bytes"] == {"0": missing}


def test_settings_reach_the_plan(command: Command, llama: str) -> None:
    options = ["-d", "0=1MiB", "-d", "1=1MiB", "--pin", "lm_head=1", "--fill", "fewest"]
    made = planner.Plan.from_json(command("plan", llama, *options, "--json").stdout)
    assert first_device_of(made.device_map, "lm_head") == 1
    doubled = planner.Plan.from_json(command("plan", llama, *options, "--dtype", "fp32", "--json").stdout)
    assert [device.used_bytes for device in doubled.devices] == [0, 2 * llama_bytes()]


def test_headroom_of_all_and_of_one(command: Command, llama: str) -> None:
    options = ["-d", "0=10000B", "-d", "1=20000B", "--headroom", "5%", "--headroom", "1=7B"]
    made = planner.Plan.from_json(command("plan", llama, *options, "--json").stdout)
    assert [device.headroom_bytes for device in made.devices] == [500, 7]


def test_headroom_without_a_device_needs_no_named_budget() -> None:
    made = planner.plan(write_llama("detected"), headroom={"all": "50%"})
    assert all(device.headroom_bytes == device.budget_bytes // 2 for device in made.devices)


def test_names_that_are_not_there_are_bad_input(command: Command, llama: str) -> None:
    done = command("plan", llama, *ROOM, "--pin", "lm_haed=0")
    assert done.exit_code == 2
    assert "did you mean 'lm_head'?" in done.stderr


@pytest.mark.parametrize("model", ["absent", "empty", "/dev/null", ""])
def test_what_is_no_model_is_bad_input(command: Command, model: str) -> None:
    Path("empty").mkdir()
    for asked in (("plan", model, *ROOM), ("sizes", model)):
        assert command(*asked).exit_code == 2


# ---- check


def test_a_plan_of_the_model_is_valid(command: Command, llama: str) -> None:
    command("plan", llama, *ROOM, "-o", "plan.json")
    done = command("check", llama, "plan.json", *ROOM)
    assert (done.exit_code, done.stdout) == (0, "valid\n")
    assert answer(command("check", llama, "plan.json", "--json")) == {"valid": True, "findings": []}


def test_a_plan_is_judged_by_its_own_budgets_and_types(command: Command, llama: str) -> None:
    """Also where the plan counts other types than the files have, and where an option says otherwise."""
    half = llama_bytes() // 2
    assert (
        command("plan", llama, "-d", f"0={half}B", "--dtype", "float8_e4m3fn", "-o", "plan.json").exit_code
        == 0
    )
    done = command("check", llama, "plan.json")
    assert (done.exit_code, done.stdout) == (0, "valid\n")
    done = command("check", llama, "plan.json", "--dtype", "bfloat16")
    assert (done.exit_code, "device 0 would hold" in done.stdout) == (1, True)
    done = command("check", llama, "plan.json", "-d", "0=10B")
    assert (done.exit_code, "of 10 B" in done.stdout) == (1, True)
    data = json.loads(Path("plan.json").read_text())
    data["devices"][0]["budget_bytes"] = 10
    Path("plan.json").write_text(json.dumps(data))
    assert "of 10 B" in command("check", llama, "plan.json").stdout


def test_without_budgets_none_are_judged_and_it_says_so(command: Command, llama: str) -> None:
    Path("map.json").write_text('{"": "cuda:0"}')
    done = command("check", llama, "map.json")
    assert (done.exit_code, done.stdout) == (0, "valid; budgets were not judged, as -d named none\n")


def test_every_fault_of_a_map_is_listed(command: Command, llama: str) -> None:
    Path("map.json").write_text(json.dumps({"model": 0, "lm_haed": 1}))
    done = command("check", llama, "map.json", "-d", "0=1000B")
    used = llama_bytes() - 32 * 8 * 2
    assert done.exit_code == 1
    assert "lm_head.weight is on no device" in done.stdout
    assert f"device 0 would hold {format_bytes(used)} of 1000 B" in done.stdout
    assert "key 'lm_haed' matches nothing in the model; the nearest name is 'lm_head'" in done.stdout
    assert done.stdout.splitlines()[-1] == "not valid"
    found = answer(command("check", llama, "map.json", "-d", "0=1000B", "--json"))
    assert found["valid"] is False
    assert {finding["rule"] for finding in found["findings"]} == {"uncovered", "over-budget", "unknown-key"}


def test_classes_and_ties_are_those_of_the_model(command: Command, llama: str) -> None:
    Path("map.json").write_text(json.dumps({"": 0, "model.layers.1.mlp": 1, "lm_head": 1}))
    assert command("check", llama, "map.json").exit_code == 0
    split = command("check", llama, "map.json", "--no-split", "LlamaDecoderLayer")
    assert split.exit_code == 1
    assert "model.layers.1 must not be split, but is on 0 and 1" in split.stdout
    told = json.loads(Path(llama, "config.json").read_text())
    Path(llama, "config.json").write_text(json.dumps({**told, "tie_word_embeddings": True}))
    tied = answer(command("check", llama, "map.json", "--json"))
    assert [finding["rule"] for finding in tied["findings"]] == ["tied-apart"]
    assert tied["findings"][0]["name"] == "model.embed_tokens.weight"


def test_bytes_are_judged_in_the_dtype_that_is_asked_for(command: Command, llama: str) -> None:
    Path("map.json").write_text('{"": 0}')
    budget = ("-d", f"0={llama_bytes()}B")
    assert command("check", llama, "map.json", *budget).exit_code == 0
    assert command("check", llama, "map.json", *budget, "--dtype", "fp32").exit_code == 1


@pytest.mark.parametrize(
    "text", ["[]", '{"a": [0]}', '{"a": null}', '{"a": 0, "a": 1}', "{", '{"schema": 1}']
)
def test_what_is_no_map_is_bad_input(command: Command, llama: str, text: str) -> None:
    Path("map.json").write_text(text)
    assert command("check", llama, "map.json").exit_code == 2


# ---- sizes


def test_sizes_add_up(command: Command, llama: str) -> None:
    sizes = answer(command("sizes", llama, "--json", "--depth", "3"))
    assert sizes["total_bytes"] == llama_bytes()
    assert sizes["sizes"]["model"] + sizes["sizes"]["lm_head"] == llama_bytes()
    layers = [sizes["sizes"][f"model.layers.{layer}"] for layer in range(4)]
    assert sum(layers) == sizes["sizes"]["model.layers"]
    assert "model.layers.0.mlp" not in sizes["sizes"]
    assert len(tensor_shapes()) > len(sizes["sizes"])


def test_sizes_are_printed_in_columns(command: Command, llama: str) -> None:
    lines = command("sizes", llama, "--depth", "1").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["module", "model", "lm_head", "the"]
    assert lines[1].split()[1:3] == format_bytes(llama_bytes() - 512).split()
    total = answer(command("sizes", llama, "--json", "--dtype", "fp32"))["total_bytes"]
    assert total == 2 * llama_bytes()


@pytest.mark.parametrize("options", [("--depth", "-1"), ("--depth", "x"), ("--dtype", "fp7")])
def test_bad_options_of_sizes_are_bad_input(command: Command, llama: str, options: tuple[str, str]) -> None:
    assert command("sizes", llama, *options).exit_code == 2


def test_a_model_without_tensors_is_a_model(command: Command) -> None:
    Path("empty.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    assert answer(command("sizes", "empty.safetensors", "--json")) == {"total_bytes": 0, "sizes": {}}
    assert command("sizes", "empty.safetensors").exit_code == 0
    assert command("plan", "empty.safetensors", "-d", "0=5B").exit_code == 0
    assert command("check", "empty.safetensors", "-", stdin="{}").exit_code == 0


NOTE = "sizes are those before quantization"


def test_sizes_before_quantisation_are_told_wherever_bytes_are_shown(
    command: Command, tmp_path: Path
) -> None:
    """Of a `config.json` alone: what a quantiser makes of it stands in a checkpoint's files only."""
    pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes}
    tables = {
        "plain": {},
        "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    }
    for name, more in tables.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**told, **more}))
        model, plan = str(tmp_path / name), f"{name}.json"
        command("plan", model, "-d", "0=1GiB", "-o", plan)
        command("plan", model, "-d", "0=1GiB", "-d", "1=1GiB", "--fill", "even", "-o", f"other-{name}.json")
        Path("map.json").write_text('{"": 0}')
        Path("rows.jsonl").write_text('{"0": "10B"}\n')
        calls = (
            ("plan", model, "-d", "0=1GiB"),
            ("plan", model, "-d", "0=10B"),
            ("plan", model, "--budgets", "rows.jsonl"),
            ("sizes", model),
            ("sizes", model, "--depth", "0"),
            ("check", model, "map.json", "-d", "0=10B"),
            ("explain", plan, "lm_head"),
            ("diff", plan, f"other-{name}.json"),
        )
        for call in calls:
            for words in (call, (*call, "--json")):
                done = command(*words)
                assert (NOTE in done.stdout + done.stderr) == (name == "quantised"), words
        made = planner.Plan.from_json(Path(plan).read_text())
        assert (NOTE in made.summary()) == (name == "quantised")


# ---- words


def test_words_are_taken_as_people_spell_them(command: Command, llama: str) -> None:
    plain = answer(command("plan", llama, "-d", "0=64KiB", "-d", "cpu=1MiB", "--mode", "no_disk", "--json"))
    spelt = answer(command("plan", llama, "-d", "0=64KiB", "-d", "CPU=1MiB", "--mode", "no-disk", "--json"))
    assert plain["device_map"] == spelt["device_map"]
    options = ("--fill", "in-order", "--mode", "GPU-only", "--pin", "lm_head=0", "--forbid", "model=Disk,CPU")
    shown = answer(command("config", "show", "--json", *options))["settings"]
    assert (shown["mode"], shown["strategy"]["fill"], shown["forbid"]) == (
        "gpu_only",
        "in_order",
        {"model": ["disk", "cpu"]},
    )


def test_help_and_version_are_asked_for_in_every_usual_way(command: Command) -> None:
    assert command("-V").stdout == command("--version").stdout
    for asked in ((), ("help",), ("-h",)):
        done = command(*asked)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: planner [OPTIONS] COMMAND")
    assert command("help", "plan").stdout == command("plan", "--help").stdout
    assert command("help", "config", "show").stdout == command("config", "show", "--help").stdout
