"""Sizes as people write them: a bare number in a file or on a command line is hardly bytes, and what is dumped is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.config import Stack
from planner.errors import InvalidConfigError, InvalidInputError
from planner.settings.schema import Settings
from planner.units import exact_bytes, parse_bytes

GIB = 1 << 30


def stack() -> Stack[Settings]:
    return Stack(Settings)


@pytest.mark.parametrize("size", ["24", "1.5", "1048575"])
@pytest.mark.parametrize("setting", ["max_memory", "headroom"])
def test_a_bare_number_that_a_person_wrote_is_a_question(tmp_path: Path, setting: str, size: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(f"{setting}: {{0: {size}}}\n")
    table = tmp_path / "some.json"
    table.write_text(json.dumps({setting: {"0": size}}))
    for written in (
        stack().file(file),
        stack().file(table),
        stack().environment({f"PLANNER_{setting.upper()}__0": size}),
        stack().environment({f"PLANNER_{setting.upper()}": f"{{0: {size}}}"}),
        stack().arguments(["--set", f"{setting}.0={size}"]),
        stack().option(setting, {"0": size}, f"-d 0={size}"),
    ):
        with pytest.raises(InvalidConfigError, match=f"did you mean {size}[GM]iB") as caught:
            written.resolve()
        assert f"{size}B" in str(caught.value)


@pytest.mark.parametrize("size", ["0", "1048576", "24B", "24GiB", "24G", "24 g", "0.5M"])
def test_what_is_no_slip_is_read(size: str) -> None:
    read = stack().arguments(["--set", f"max_memory.0={size}"]).resolve().config.max_memory
    assert read == {0: parse_bytes(size, takes_short_units=True)}


def test_numbers_of_code_are_bytes() -> None:
    values = {"max_memory": {0: 24, "cpu": "24"}, "headroom": {0: 2}}
    for built in (stack().set(values), stack().imported(values)):
        assert built.resolve().config.max_memory == {0: 24, "cpu": 24}


@pytest.mark.parametrize(("size", "meant"), [("24G", 24 * GIB), ("512m", GIB // 2), ("1T", 1024 * GIB)])
def test_short_units_are_binary_in_settings_and_unknown_to_the_drop_ins(size: str, meant: int) -> None:
    assert stack().set(max_memory={0: size}).resolve().config.max_memory == {0: meant}
    with pytest.raises(InvalidInputError):
        planner.convert_file_size_to_int(size)


@pytest.mark.parametrize("size", ["1e30GiB", "1e10PiB", "1025PiB"])
def test_more_than_any_device_holds_is_an_error_that_says_so(size: str) -> None:
    with pytest.raises(InvalidConfigError, match="more than any device holds"):
        stack().arguments(["--set", f"max_memory.0={size}"]).resolve()


@given(
    st.integers(min_value=0, max_value=1 << 60) | st.integers(0, 1 << 30).map(lambda count: count * 1000**2)
)
def test_a_dump_is_read_back_wherever_it_is_put(size: int) -> None:
    assert parse_bytes(exact_bytes(size)) == size
    resolved = stack().set(max_memory={0: size}, headroom={"cpu": size}).resolve()
    written = resolved.dump()
    assert written["max_memory"] == {0: exact_bytes(size)}
    option = stack().arguments([f"--set=max_memory.0={exact_bytes(size)}"]).resolve()
    assert option.config.max_memory == stack().set(written).resolve().config.max_memory == {0: size}


@pytest.mark.parametrize("said", ["5%", "2GiB"])
def test_one_value_is_the_headroom_of_all(tmp_path: Path, said: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(f"headroom: {said}\n")
    for written in (
        stack().file(file),
        stack().environment({"PLANNER_HEADROOM": said}),
        stack().arguments([f"--set=headroom={said}"]),
        stack().set(headroom=said),
    ):
        short = written.resolve()
        assert short.config == stack().set(headroom={"all": said}).resolve().config
        assert stack().set(short.dump()).resolve().config == short.config
    mixed = stack().file(file).arguments(["--set", "headroom.0=1GiB"]).resolve().config.headroom
    assert mixed is not None and set(mixed) == {"all", 0}
