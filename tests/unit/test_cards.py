"""The table of known cards: figures that fit each other, and names that mean one card or none."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.devices import cards
from planner.devices.cards import Card, card_named, known_cards
from planner.errors import InvalidDevicesError

TABLE = Path(planner.__file__).parent / "devices/cards.jsonl"
GIB = 1 << 30
GIGA, TERA = 10**9, 10**12
NAMES = [card.name for card in known_cards()]
PCIE = {3: 16 * GIGA, 4: 32 * GIGA, 5: 64 * GIGA}  # 16 lanes, one way, by generation
NOT_PCIE = {"GH200 96GB": 450 * GIGA}  # NVLink-C2C

# Products in 16 bits over those in float32, by how many multiply-adds a multiprocessor's units do in a clock. Sparse figures have
# twice as many. Where a sheet has other clocks for both, the ratio is up to an eighth off.
WIDER = {
    "V100": 8,
    "T4": 8,
    "A100": 16,
    "A10 ": 4,
    "A10G": 2,
    "RTX A6000": 4,
    "RTX 3": 2,
    "L4 ": 4,
    "L40 ": 2,
    "L40S": 4,
    "RTX 4": 2,
    "RTX 6000 Ada": 4,
    "H": 16,
    "GH200": 16,
    "B200": 30,
    "RTX 5": 2,
    "RTX PRO 6000": 4,
    "GB10": 4,
    "MI2": 4,
    "MI300X": 8,
    "M1": 1,
    "M2": 1,
    "M3": 1,
    "M4": 1,
}
# What vendors advertise, both ways together.
NVLINK_TOTAL = {
    "A100 SXM": 600 * GIGA,
    "B200 SXM": 1_800 * GIGA,
    "H100 SXM": 900 * GIGA,
    "H200 SXM": 900 * GIGA,
    "V100 SXM2": 300 * GIGA,
}
INFINITY_FABRIC = {"MI250X": 100 * GIGA, "MI300X": 128 * GIGA}  # one link, both ways


def each(card: str) -> Card:
    return next(known for known in known_cards() if known.name == card)


def of_prefix(name: str, table: dict[str, int]) -> list[int]:
    return [value for prefix, value in table.items() if name.startswith(prefix)]


def test_the_table_is_sorted_and_its_lines_are_canonical() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert lines == [json.dumps(json.loads(line), sort_keys=True) for line in lines]
    assert sorted(NAMES) == NAMES


def test_no_two_cards_have_one_name() -> None:
    spelled = [spelling.casefold() for card in known_cards() for spelling in (card.name, *card.torch_names)]
    assert len(set(spelled)) == len(spelled)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_whole_figures_and_a_source(name: str) -> None:
    card = each(name)
    figures = [card.memory_bytes, card.memory_bytes_per_s, *card.flops.values()]
    figures += [rate for rate in (card.host_bytes_per_s, card.peer_bytes_per_s) if rate is not None]
    assert all(type(figure) is int and figure > 0 for figure in figures)
    assert card.torch_names
    assert card.source.startswith("https://") and " " not in card.source
    assert {"float16", "float32"} <= set(card.flops) <= {"float16", "float32", "bfloat16"}
    assert card.kind == ("mps" if card.torch_names[0].startswith("Apple ") else "cuda")
    assert pickle.loads(pickle.dumps(card)) == card and hash(card)


@pytest.mark.parametrize("name", NAMES)
def test_no_rate_is_a_sparse_one(name: str) -> None:
    flops = each(name).flops
    [wider] = of_prefix(name, WIDER)
    assert flops["float16"] / flops["float32"] == pytest.approx(wider, rel=0.14)
    assert flops.get("bfloat16", flops["float16"]) == flops["float16"]


def test_a_card_without_units_for_bfloat16_has_no_rate_of_it() -> None:
    lacking = {card.name.split()[0] for card in known_cards() if "bfloat16" not in card.flops}
    assert lacking == {"V100", "T4", "M1", "M2", "M3", "M4"}


def test_the_figures_that_public_tables_have_wrong() -> None:
    assert each("H100 SXM 80GB").flops["bfloat16"] == 989_400 * GIGA  # not 1 979
    assert each("H100 SXM 80GB").memory_bytes_per_s == 3_350 * GIGA  # not 3 072
    assert each("L4 24GB").flops["float16"] == 121 * TERA  # not 242
    assert each("L4 24GB").memory_bytes_per_s == 300 * GIGA  # not 3 350
    assert each("A10G 24GB").flops["float16"] == 70 * TERA  # not those of an A10
    assert each("RTX 3090 24GB").flops["float16"] == 71 * TERA  # not 142


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_read_in_a_plausible_time(name: str) -> None:
    card = each(name)
    times_a_second = card.memory_bytes_per_s / card.memory_bytes
    assert (1 if card.shares_host_memory else 3) < times_a_second < (10 if card.shares_host_memory else 110)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_one_way(name: str) -> None:
    card = each(name)
    if card.shares_host_memory:
        assert card.peer_bytes_per_s is None
    else:
        assert card.host_bytes_per_s == NOT_PCIE.get(name) or card.host_bytes_per_s in PCIE.values()
    advertised = of_prefix(name, NVLINK_TOTAL | INFINITY_FABRIC)
    assert [card.peer_bytes_per_s] == ([total // 2 for total in advertised] or [None])


def test_efficiencies_are_shares() -> None:
    shares = [cards.MEMORY_EFFICIENCY, cards.COMPUTE_EFFICIENCY, cards.PINNED_EFFICIENCY]
    shares += [cards.PAGEABLE_EFFICIENCY, cards.UNCERTAINTY]
    assert all(0 < share < 1 for share in shares)
    assert cards.PAGEABLE_EFFICIENCY < cards.PINNED_EFFICIENCY


@given(st.data())
def test_a_card_is_found_in_every_spelling(data: st.DataObject) -> None:
    """In any case, with other separators, and without the vendor."""
    card = data.draw(st.sampled_from(known_cards()))
    spelling = data.draw(st.sampled_from((card.name, *card.torch_names)))
    if data.draw(st.booleans()):
        for vendor in ("NVIDIA ", "GeForce ", "Tesla ", "AMD ", "Instinct ", "Apple "):
            spelling = spelling.removeprefix(vendor)
    spelling = "".join(
        data.draw(st.sampled_from((letter.lower(), letter.upper())), label="letter") for letter in spelling
    )
    separator = data.draw(st.sampled_from((" ", "-", "_", "  ")))
    assert card_named(spelling.replace(" ", separator)) is card


@given(st.data())
def test_words_of_a_name_mean_that_card_or_are_refused(data: st.DataObject) -> None:
    """Unless they are all of another one's name, as "M4" is of "M4 Max"."""
    card = data.draw(st.sampled_from(known_cards()))
    words = data.draw(st.sampled_from((card.name, *card.torch_names))).split()
    name = " ".join(data.draw(st.lists(st.sampled_from(words), min_size=1, unique=True)))
    try:
        found = card_named(name)
    except InvalidDevicesError:
        return
    assert found is card or any(spelling.endswith(name) for spelling in (found.name, *found.torch_names))


@given(
    st.sampled_from(known_cards()),
    st.sampled_from(("Ti", "SUPER", "D", "Laptop GPU", "MIG 1g.10gb", "-48Q", "Mobile", "LS", "2")),
)
def test_another_model_is_never_taken_for_a_known_one(card: Card, suffix: str) -> None:
    for spelling in card.torch_names:
        with pytest.raises(InvalidDevicesError) as caught:
            card_named(f"{spelling} {suffix}")
        assert card.name.split()[0] == caught.value.suggestions[0].split()[0]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3060 Ti",
        "AMD Instinct MI250",
        "Tesla M4",
        "Quadro RTX 6000",
        "NVIDIA H800",
        "V100S-PCIE-32GB",
        "Apple M5",
        "Ada",
        "HBM3",
        "80GB",
        "NVIDIA",
        "",
        "x" * 100_000,
        "\x1b[31m",
        None,
        0,
    ],
)
def test_what_is_no_known_card_is_refused(name: str) -> None:
    with pytest.raises(
        InvalidDevicesError, match=r"no card is known as .*planner probe.*machine file"
    ) as caught:
        card_named(name)
    assert caught.value.device == name
    assert len(caught.value.message) < 500


def test_names_of_several_cards_list_them() -> None:
    with pytest.raises(InvalidDevicesError, match="'H100' is the name of 3 cards") as caught:
        card_named("H100")
    assert caught.value.suggestions == ("H100 NVL 94GB", "H100 PCIe 80GB", "H100 SXM 80GB")
    assert all(name in caught.value.message for name in caught.value.suggestions)
    with pytest.raises(InvalidDevicesError, match="2 cards"):
        card_named("A100 80 GB")
    assert card_named("A100-SXM4 80GB").name == "A100 SXM 80GB"


def test_near_names_come_first() -> None:
    with pytest.raises(InvalidDevicesError) as caught:
        card_named("NVIDIA GeForce RTX 3060 Ti")
    assert caught.value.suggestions[0] == "RTX 3060 12GB"


def test_memory_tells_cards_of_one_name_apart() -> None:
    """A card with 8 GB has the name of one with 12; drivers and error correction keep some of every card."""
    assert card_named("NVIDIA GeForce RTX 3060", memory_bytes=12_500_000_000).name == "RTX 3060 12GB"
    with pytest.raises(InvalidDevicesError, match=r"has 8589934592 bytes of memory.* 12884901888 bytes"):
        card_named("NVIDIA GeForce RTX 3060", memory_bytes=8 * GIB)
    assert card_named("Tesla T4", memory_bytes=15_655_829_504).name == "T4 16GB"
    assert card_named("H100", memory_bytes=94 * GIB - 1).name == "H100 NVL 94GB"
    assert card_named("Apple M1", memory_bytes=8 * GIB).name == "M1"


def test_cards_are_known_without_torch() -> None:
    code = "import sys; from planner.devices.cards import known_cards; known_cards(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
