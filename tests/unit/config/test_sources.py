"""Each source says where each value was written, and refuses what it cannot say."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping

import pytest

from planner.config import Replace, Stack, UserSource, config, setting
from planner.config.document import core_scalar
from planner.errors import InvalidConfigError
from planner.settings.schema import Settings


@config
class Inner:
    size: int = 1
    name: str = ""


@config
class Outer:
    inner: Inner = Inner()
    optional: Inner | None = None
    pin: Mapping[str, str] = setting(default={})
    deep: Mapping[str, Mapping[str, int]] = setting(default={})
    rooms: Mapping[str, Inner] = setting(default={})
    items: tuple[int, ...] = ()
    text: str = ""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def error_of(stack):
    with pytest.raises(InvalidConfigError) as caught:
        stack.resolve()
    return str(caught.value)


def test_yaml_gives_line_and_column(tmp_path):
    path = write(tmp_path, "a.yaml", "inner:\n  size: 3\nitems:\n  - 1\n  - 2\n")
    resolved = Stack(Outer).file(path).resolve()
    assert resolved.origin("inner.size").where == f"{path}:2:9"
    assert resolved.origin("items").where == f"{path}:4:3"


def test_json_gives_line_and_column_with_tabs_escapes_and_emoji(tmp_path):
    path = write(tmp_path, "a.json", '{\n\t"text": "\\ud83d\\ude00 \\"x\\" {",\n\t"inner": {"size": 3}\n}')
    resolved = Stack(Outer).file(path).resolve()
    assert resolved.config.text == '\N{GRINNING FACE} "x" {'
    assert resolved.origin("inner.size").where == f"{path}:3:20"


def test_toml_gives_the_file_and_a_line_only_for_errors(tmp_path):
    path = write(tmp_path, "a.toml", 'text = "x"\n[inner]\nsize = 3\n')
    assert Stack(Outer).file(path).resolve().origin("inner.size").where == str(path)
    assert "line 2" in error_of(Stack(Outer).file(write(tmp_path, "b.toml", 'text = "x"\nsize = = 3\n')))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "text: a\nitems: []\ntext: b\n", "duplicate key 'text' in lines 1 and 3"),
        ("a.json", '{"text": "a",\n "text": "b"}', "duplicate key 'text' in lines 1 and 2"),
        ("a.toml", 'text = "a"\ntext = "b"\n', "not TOML"),
        ("a.yaml", "- 1\n", "the file must hold a mapping"),
        ("a.ini", "", "the name must end in"),
        ("a.yaml", "text: &a x\n", "anchors and aliases"),
        ("a.yaml", "text: !!str x\n", "tag"),
        ("a.yaml", "<<: {text: x}\n", "merge keys"),
        ("a.yaml", "text: x\n---\ntext: y\n", "a second document"),
        ("a.yaml", "[1]: x\n", "a key must be a plain value"),
        ("a.yaml", "text:\n\t- x\n", "not YAML"),
        ("a.json", "{'text': 1}", "not JSON"),
    ],
)
def test_what_a_file_must_not_hold(tmp_path, name, text, message):
    path = write(tmp_path, name, text)
    found = error_of(Stack(Outer).file(path))
    assert f"{path}: " in found and message in found


def test_missing_files_are_reported_with_everything_else(tmp_path):
    text = error_of(Stack(Outer).file(tmp_path / "none.yaml").file(tmp_path / "no.json").set(bogus=1))
    assert text.startswith("configuration: 3 problems") and text.count("cannot be read: No such file") == 2


def test_an_empty_file_says_nothing(tmp_path):
    assert Stack(Outer).file(write(tmp_path, "a.yaml", "# nothing\n")).resolve().dump() == {}


def test_yaml_can_replace_and_unset(tmp_path):
    base = Stack(Outer).set(pin={"a": "1", "b": "2"}, text="x").resolve()
    path = write(tmp_path, "a.yaml", "pin: !replace\n  c: '3'\ntext: !unset\n")
    stack = Stack(Outer).imported({"pin": {"a": "1"}, "text": "x"}).file(path)
    assert stack.resolve().config == Stack(Outer).set(pin={"c": "3"}).resolve().config
    assert base.config.text == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("on", "on"), ("012", 12), ("0o17", 15), ("0x1F", 31), ("~", None), ("null", None), ("True", True),
     (".inf", math.inf), ("1.", 1.0), ("1_000", "1_000"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("yes", "yes")],
)  # fmt: skip
def test_plain_scalars_are_yaml_1_2(text, value):
    assert core_scalar(text) == value and type(core_scalar(text)) is type(value)


def test_environment_nests_and_ignores_case(tmp_path):
    path = write(tmp_path, "a.yaml", "inner: {size: 1, name: file}\n")
    environ = {
        "PLANNER_INNER__SIZE": "7",
        "planner_Pin__Model__Layers__0": "cpu",
        "OTHER": "x",
        "PLANNER_CONFIG": str(path),
    }
    resolved = Stack(Outer).environment(environ).resolve()
    assert resolved.config.inner == Inner(size=7, name="file")
    assert resolved.config.pin == {"model.layers.0": "cpu"}
    assert resolved.origin("inner.size").where == "environment PLANNER_INNER__SIZE"


def test_environment_may_say_a_type_and_its_keys():
    environ = {"PLANNER_STRATEGY": "balanced", "PLANNER_STRATEGY__FALLBACK_ALLOCATION": "true"}
    dump = Stack(Settings).environment(environ).resolve().dump()
    assert dump == {"strategy": {"type": "balanced", "fallback_allocation": True}}


def test_environment_errors_name_the_variable():
    text = error_of(Stack(Outer).environment({"PLANNER_INER__SIZE": "7"}))
    assert (
        "iner: unknown key in Outer; did you mean 'inner'?" in text
        and "environment PLANNER_INER__SIZE" in text
    )
    assert "inner.size: said twice" in error_of(
        Stack(Outer).environment({"PLANNER_INNER__SIZE": "1", "planner_inner__size": "2"})
    )


def test_command_line_options_in_all_forms(tmp_path):
    path = write(tmp_path, "a.yaml", "text: file\nitems: [1]\n")
    argv = ["--set", "text=a=b", "--config", str(path), "--unset=items", "--set", "inner:={size: 4}"]
    stack = Stack(Outer).arguments(argv)
    assert [layer.place for layer in stack.layers] == [UserSource.FILE, *[UserSource.ARGUMENTS] * 3]
    config_ = stack.resolve().config
    assert (config_.text, config_.items, config_.inner.size) == ("a=b", (), 4)
    assert stack.resolve().origin("text").where == "command line argument 1 `--set text=a=b`"


def test_repeated_arguments_stay_in_the_history():
    resolved = Stack(Outer).arguments(["--set", "text=a", "--set", "text=b", "--set", "text=c"]).resolve()
    assert [past.value for past in resolved.past[("text",)]] == ["b", "a"]


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("text=1", "text", "1"),
        ("text='1'", "text", "1"),
        ("text={a: 1}", "text", "{a: 1}"),
        ("text=[x", "text", "[x"),
        ("text=", "text", ""),
        ("text=a #b", "text", "a #b"),
        ("items=[1, 2]", "items", (1, 2)),
        ("pin={a.b: x}", "pin", {"a.b": "x"}),
        ("pin.a=b.c=d", "pin", {"a": "b.c=d"}),
        ("deep.x.a.b=1", "deep", {"x": {"a.b": 1}}),
        ("rooms.x.size=2", "rooms", {"x": Inner(size=2)}),
        ("optional={}", "optional", Inner()),
        ("optional.size=2", "optional", Inner(size=2)),
        ("optional=null", "optional", None),
    ],
)
def test_text_takes_the_type_of_its_field(argument, field, value):
    assert getattr(Stack(Outer).arguments(["--set", argument]).resolve().config, field) == value


def test_keywords_nest_and_take_tuples():
    stack = Stack(Outer).set({"inner": {"size": 2}, ("inner", "name"): "x", ("pin", "a.b"): "c"}, text="y")
    assert stack.resolve().dump() == {"inner": {"size": 2, "name": "x"}, "pin": {"a.b": "c"}, "text": "y"}
    cyclic: dict[str, object] = {}
    cyclic["inner"] = cyclic
    assert "nested more than 64 deep" in error_of(Stack(Outer).set(cyclic))
    assert "nested more than 64 deep" in error_of(Stack(Outer).set({("a",) * 20_000: 1}))


def test_replace_keeps_the_rest_of_the_layer():
    resolved = Stack(Outer).set(pin={"a": "1"}, text="x").set(pin=Replace({"b": "2"})).resolve()
    assert resolved.dump() == {"pin": {"b": "2"}, "text": "x"}
    assert "replaced by keyword arguments" in resolved.explain("pin.a")


def test_devices_have_one_key_and_one_spelling_in_a_layer():
    stack = Stack(Settings).set(max_memory={"cuda:0": 1, "cpu": "1KiB"})
    assert stack.resolve().config.max_memory == {0: 1, "cpu": 1024}
    assert "max_memory.0: said twice, as 0 and as 'cuda:0'" in error_of(
        Stack(Settings).set(max_memory={0: 1, "cuda:0": 2})
    )
    assert stack.arguments(["--set", "max_memory.cuda:0=5"]).resolve().config.max_memory == {
        0: 1,
        "cpu": 1024,
    }


def test_a_whole_mapping_is_replaced_by_a_mapping_and_updated_by_a_path():
    base = Stack(Settings).imported({"max_memory": {0: 1, "cpu": 2}})
    assert base.set(max_memory={1: 5}).resolve().config.max_memory == {1: 5}
    updated = base.set({("max_memory", 1): 5}).resolve()
    assert updated.config.max_memory == {0: 1, 1: 5, "cpu": 2}
    assert updated.dump() == {"max_memory": {"!update": True, 1: "5B"}}
    assert base.set(updated.dump()).resolve().config == updated.config
    assert base.arguments(["--set", "max_memory.0=3B"]).resolve().config.max_memory == {0: 3, "cpu": 2}
    assert base.set(max_memory={}).resolve().config.max_memory == {}


def test_a_library_call_reads_nothing_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANNER_OFFLOAD_BUFFERS", "true")
    write(tmp_path, "planner.yaml", "dtype: float16\n")
    assert Stack.of(Settings, None).resolve().dump() == {}
    command = Stack.from_command(
        Settings, ["--set", "strategy=balanced"], {"PLANNER_OFFLOAD_BUFFERS": "true"}
    )
    assert command.resolve().dump() == {
        "strategy": {"type": "balanced"},
        "dtype": "float16",
        "offload_buffers": True,
    }


def test_config_argument_takes_path_mapping_stack_and_resolved(tmp_path):
    path = write(tmp_path, "a.yaml", "dtype: float16\n")
    stack = Stack(Settings).imported({"model": {"hidden_size": 8}}).set(dtype="float16")
    for source in (path, str(path), {"dtype": "float16"}, stack, stack.resolve()):
        assert Stack.of(Settings, source).resolve().config.dtype == "float16"
    assert Stack.of(Settings, stack.resolve()).resolve().config.model.hidden_size == 8


def test_importing_loads_neither_torch_nor_yaml():
    code = "import sys, planner.config, planner.settings.schema, planner.settings.model_facts; print([m for m in ('torch', 'yaml', 'transformers') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
