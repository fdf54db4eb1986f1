"""`planner config`: what the layers say, and where options stand among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Command, answer
from planner.cli.parsing import GivenOption
from planner.cli.settings import SETTING_OPTIONS, stack_of
from planner.config import Stack
from planner.errors import InvalidConfigError, InvalidInputError
from planner.settings.schema import Settings


def settings(*options: tuple[str, str]) -> Settings:
    return stack_of([GivenOption(name, text) for name, text in options], {}).resolve().config


def test_without_a_word_there_is_nothing_to_show(command: Command) -> None:
    done = command("config", "show")
    assert (done.exit_code, done.stdout) == (0, "# nothing is said: all settings have their defaults\n")
    assert answer(command("config", "show", "--json")) == {"settings": {}, "origins": {}}


def test_what_is_shown_is_a_file_that_says_the_same(command: Command) -> None:
    options = ["-d", "0=80GiB", "-d", "cpu=1GiB", "--pin", "lm_head=0", "--forbid", "model.visual=1,cpu"]
    options += ["--together", "a,b", "--headroom", "5%", "--fill", "fewest", "--dtype", "bf16"]
    done = command("config", "show", *options)
    assert done.exit_code == 0
    Path("again.yaml").write_text(done.stdout)
    again = Stack(Settings).file("again.yaml").resolve().config
    assert again == settings(
        ("device", "0=80GiB"),
        ("device", "cpu=1GiB"),
        ("pin", "lm_head=0"),
        ("forbid", "model.visual=1,cpu"),
        ("together", "a,b"),
        ("headroom", "5%"),
        ("fill", "fewest"),
        ("dtype", "bf16"),
    )
    assert command("config", "show", "--config", "again.yaml").exit_code == 0


def test_modules_named_like_numbers_and_words_come_back(command: Command) -> None:
    names = [
        "0",
        "1",
        "null",
        "true",
        "~",
        "1e3",
        "0x1f",
        "2024-01-01",
        "",
        "a b",
        "a: b",
        "a#b",
        '"',
        "'",
        "\t",
        "!unset",
        "!",
        "é",
    ]
    options = [option for name in names for option in ("--pin", f"{name}=0", "--forbid", f"{name}=cpu")]
    done = command("config", "show", *options)
    assert done.exit_code == 0
    Path("again.yaml").write_text(done.stdout)
    again = Stack(Settings).file("again.yaml").resolve().config
    assert dict(again.pin) == dict.fromkeys(sorted(names), 0)
    assert dict(again.forbid) == dict.fromkeys(sorted(names), ("cpu",))
    shown = answer(command("config", "show", "--json", *options))["settings"]
    Path("again.json").write_text(json.dumps(shown))
    assert Stack(Settings).file("again.json").resolve().config == again


@pytest.mark.parametrize(
    "line", ["\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x00", "\x1b"]
)
def test_a_line_break_in_an_option_does_not_become_a_setting(command: Command, line: str) -> None:
    text = f"offload_folder=a{line}mode: gpu_only #"
    done = command("config", "show", "--set", text)
    Path("again.yaml").write_text(done.stdout)
    again = Stack(Settings).file("again.yaml").resolve().config
    assert (again.mode, str(again.offload_folder)) == ("any", f"a{line}mode: gpu_only #")
    assert len(done.stdout.splitlines()) == 1
    explained = command("config", "explain", "offload_folder", "--set", text)
    assert not any(each.startswith("mode") for each in explained.stdout.splitlines())


def test_one_key_of_budgets_is_shown_as_an_update(command: Command) -> None:
    done = command("config", "show", "--set", "max_memory.0=5B")
    assert done.stdout.startswith('max_memory: !update\n  0: "5B"  # ')
    Path("one.yaml").write_text(done.stdout)
    Path("planner.yaml").write_text("max_memory: {0: 10GiB, cpu: 30GiB}\n")
    changed = answer(command("config", "show", "--json", "--config", "one.yaml"))
    assert changed["settings"] == {"max_memory": {"0": "5B", "cpu": "30GiB"}}
    Path("planner.yaml").unlink()
    alone = answer(command("config", "show", "--json", "--config", "one.yaml"))
    assert alone["settings"] == {"max_memory": {"!update": True, "0": "5B"}}
    assert set(alone["origins"]) == {"max_memory.0"}


def test_numbers_out_of_range_are_told_with_their_option(command: Command) -> None:
    done = command("config", "show", "--set", "staging_blocks=0", "--set", f"strategy.search_steps={10**30}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "staging_blocks: expected an int from 1 to 1000" in done.stderr
    assert "`--set staging_blocks=0`" in done.stderr


def test_all_shows_defaults_too(command: Command) -> None:
    shown = answer(command("config", "show", "--all", "--json"))
    assert shown["settings"]["mode"] == "any"
    assert shown["origins"]["mode"].startswith("default")
    assert command("config", "show", "--all").stdout.count("  # ") == len(shown["origins"])


def test_each_value_names_the_option_that_said_it(command: Command) -> None:
    done = command("config", "explain", "max_memory", "-d", "0=80GiB", "-d", "0=70GiB")
    assert done.exit_code == 0
    first, second = "command line argument 1 `-d 0=80GiB`", "command line argument 2 `-d 0=70GiB`"
    assert f"max_memory.0 = '70GiB'  <- user · {second}" in done.stdout
    assert f"'80GiB'  <- user · {first}  [shadowed by {second}]" in done.stdout


def test_options_count_in_their_order(command: Command) -> None:
    before = ["--mode", "no_disk", "--set", "mode=gpu_only"]
    after = ["--set", "mode=gpu_only", "--mode=no_disk"]
    assert answer(command("config", "show", "--json", *before))["settings"] == {"mode": "gpu_only"}
    assert answer(command("config", "show", "--json", *after))["settings"] == {"mode": "no_disk"}
    unset = [*after, "--unset", "mode"]
    assert answer(command("config", "show", "--json", *unset))["settings"] == {}


def test_a_value_that_looks_like_an_option_is_a_value(command: Command) -> None:
    shown = answer(command("config", "show", "--json", "--pin", "--set=0", "--pin=--mode=1"))
    assert shown["settings"] == {"pin": {"--set": 0, "--mode": 1}}


def test_precedence_is_file_environment_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("planner.yaml").write_text("mode: no_disk\ndtype: float32\nstaging_blocks: 2\n")
    Path("named.yaml").write_text("dtype: float16\n")
    Path("other.yaml").write_text("granularity: expert\nmode: any\n")
    monkeypatch.setenv("PLANNER_CONFIG", "named.yaml")
    monkeypatch.setenv("PLANNER_STAGING_BLOCKS", "3")
    shown = answer(command("config", "show", "--json", "--mode", "gpu_only", "--config", "other.yaml"))
    assert shown["settings"] == {
        "mode": "gpu_only",
        "dtype": "float16",
        "staging_blocks": 3,
        "granularity": "expert",
    }
    assert shown["origins"]["staging_blocks"] == "user · environment PLANNER_STAGING_BLOCKS"
    assert shown["origins"]["dtype"].startswith("user · named.yaml:1")


def test_the_first_device_replaces_what_files_name_and_set_changes_one(command: Command) -> None:
    Path("planner.yaml").write_text("max_memory: {0: 10GiB, cpu: 30GiB}\n")
    replaced = answer(command("config", "show", "--json", "-d", "1=1B", "-d", "2=2B"))
    assert replaced["settings"] == {"max_memory": {"1": "1B", "2": "2B"}}
    changed = answer(command("config", "show", "--json", "--set", "max_memory.0=5B"))
    assert changed["settings"] == {"max_memory": {"0": "5B", "cpu": "30GiB"}}


def test_repeated_options_add_up() -> None:
    said = settings(
        ("no_split", "A,B"),
        ("no_split", "C"),
        ("together", "a,b"),
        ("together", "c,d"),
        ("forbid", "x=0"),
        ("forbid", "y=1"),
        ("forbid", "x=cpu"),
        ("headroom", "5%"),
        ("headroom", "1=2GiB"),
    )
    assert said.no_split_module_classes == ("A", "B", "C")
    assert said.keep_together == (("a", "b"), ("c", "d"))
    assert dict(said.forbid) == {"x": (0, "cpu"), "y": (1,)}
    assert dict(said.headroom or {}) == {"all": "5%", 1: 2 << 30}


@pytest.mark.parametrize("option", ["device", "pin", "forbid"])
def test_a_pair_needs_its_equals_sign(option: str) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        settings((option, "lm_head"))


def test_every_mistake_is_told_at_once_with_its_place(command: Command) -> None:
    done = command("config", "show", "-d", "0=10 parsecs", "--mode", "gpu", "--set", "mod=any")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "3 problems" in done.stderr
    assert "`-d 0=10 parsecs`" in done.stderr
    assert "did you mean 'mode'?" in done.stderr
    problems = answer(command("config", "show", "--json", "-d", "0=10 parsecs"))["error"]["fields"][
        "problems"
    ]
    assert [problem["path"] for problem in problems] == [["max_memory", 0]]
    assert problems[0]["words"][0]["value"] == "10 parsecs"


def test_explain_of_an_unknown_path_suggests_another(command: Command) -> None:
    done = command("config", "explain", "mod")
    assert done.exit_code == 2
    assert "did you mean 'mode'?" in done.stderr
    assert answer(command("config", "explain", "mode", "--json"))["path"] == "mode"


def test_path_lists_where_settings_are_looked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("mode: any\n")
    monkeypatch.setenv("PLANNER_CONFIG", "mine.yaml")
    monkeypatch.setenv("PLANNER_DTYPE", "float16")
    done = command("config", "path", "--config", "absent.yaml")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "planner.yaml  (looked for in this folder, not there)",
        "mine.yaml  (environment PLANNER_CONFIG)",
        "absent.yaml  (option --config, not there)",
        "PLANNER_DTYPE  (environment)",
    ]
    data = answer(command("config", "path", "--json"))
    assert [row["exists"] for row in data["files"]] == [False, True]
    assert data["variables"] == ["PLANNER_DTYPE"]


def test_a_broken_file_in_the_folder_is_named(command: Command) -> None:
    Path("planner.yaml").write_text("mode: [\n")
    done = command("config", "show")
    assert done.exit_code == 2
    assert "planner.yaml" in done.stderr


def test_every_option_says_what_it_is_for() -> None:
    assert all(option.help.endswith(".") and option.form.isprintable() for option in SETTING_OPTIONS)


# ---- variables of others


@pytest.mark.parametrize("name", ["PLANNER_API_KEY", "planner_token", "PLANNER_", "PLANNER_X__Y"])
def test_a_variable_that_names_no_setting_is_a_warning_without_its_value(
    command: Command, llama: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "hunter2-secret")
    for words in (("plan", llama, "-d", "0=1GiB"), ("config", "show"), ("config", "path"), ("sizes", llama)):
        for json_too in ((), ("--json",)):
            done = command(*words, *json_too)
            assert done.exit_code == 0
            assert "hunter2" not in done.stdout + done.stderr
    done = command("plan", llama, "-d", "0=1GiB")
    assert f"the variable {name} names no setting and is ignored" in done.stderr


def test_a_misspelt_variable_is_told_the_nearest(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANNER_DTYP", "float16")
    assert (
        "PLANNER_DTYP names no setting and is ignored; did you mean PLANNER_DTYPE?"
        in command("config", "show").stderr
    )


def test_a_variable_of_a_setting_is_refused_with_its_value_and_one_below_it_is_ignored(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANNER_MODE", "sideways")
    done = command("config", "show")
    assert (done.exit_code, "sideways" in done.stderr) == (2, True)
    monkeypatch.delenv("PLANNER_MODE")
    monkeypatch.setenv("PLANNER_STRATEGY__PASSWORD", "hunter2-secret")
    done = command("config", "show")
    assert (done.exit_code, "hunter2" in done.output) == (0, False)
    assert "PLANNER_STRATEGY__PASSWORD" in done.stderr


def test_a_stack_refuses_unknown_variables_without_their_values() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        Stack(Settings).environment({"PLANNER_API_KEY": "hunter2-secret"}).resolve()
    assert "PLANNER_API_KEY" in str(caught.value)
    assert "hunter2" not in str(caught.value) + str(caught.value.fields)


def test_settings_of_the_folder_are_mentioned_and_both_endings_count(command: Command, llama: str) -> None:
    for name, mode in (("planner.yml", "no_disk"), ("planner.yaml", "gpu_only")):
        Path(name).write_text(f"mode: {mode}\n")
        done = command("plan", llama, "-d", "0=1GiB", "--json")
        assert done.stderr == f"planner: settings of ./{name} are used\n"
        assert f'"mode":{{"rank":"user","value":"{mode}"}}' in done.stdout
        assert mode in command("config", "show").stdout
