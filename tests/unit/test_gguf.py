"""GGUF files are planned by their headers, in llama.cpp's names; hostile ones end in one error."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import planner
from gguf_files import TYPES, Fact, GgufTensors, fact, header, size_of, text, total_of, write_gguf
from planner import _core
from planner.checkpoint.gguf import FILE_TYPES
from planner.checkpoint.source import open_source
from planner.model.layout import Layout

BLOCK: GgufTensors = {
    "attn_norm.weight": ("F32", [256]),
    "attn_q.weight": ("Q4_K", [256, 256]),
    "ffn_down.weight": ("Q6_K", [512, 256]),
}
EMBEDDING: GgufTensors = {"token_embd.weight": ("Q4_K", [256, 64]), "output_norm.weight": ("F32", [256])}
HEAD: GgufTensors = {"output.weight": ("Q6_K", [256, 64])}


def model(blocks: int) -> GgufTensors:
    inside = {f"blk.{n}.{name}": stored for n in range(blocks) for name, stored in BLOCK.items()}
    return {**HEAD, **EMBEDDING, **inside}


def rows_of(path: Path) -> list[tuple[str, str, list[int], int]]:
    return _core.Headers.read_gguf([str(path)], [str(path)])[0].rows()


def test_every_type_has_the_bytes_of_its_blocks(tmp_path: Path) -> None:
    tensors = {f"t.{kind}": (kind, [256, 3]) for kind in TYPES}
    expected = [(name, kind, shape, size_of(kind, shape)) for name, (kind, shape) in tensors.items()]
    assert rows_of(write_gguf(tmp_path / "all.gguf", tensors)) == expected


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_is_planned_in_blocks(tmp_path: Path, version: int) -> None:
    facts: dict[str, Fact] = {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.block_count": 12,
        "llama.embedding_length": 256,
        "tokenizer.ggml.tokens": ["a", "ü", ""] * 100,
        "f": 1.5,
    }
    path = write_gguf(tmp_path / "tiny-Q4_K_M.gguf", model(12), facts, version)
    block = total_of(BLOCK)
    budgets = {0: 7 * block + total_of(EMBEDDING), "cpu": "1GiB"}
    plan = planner.plan(path, max_memory=budgets, strategy={"type": "auto", "fill": "in_order"})
    order = ["token_embd", *(f"blk.{n}" for n in range(12)), "output_norm", "output"]
    assert list(plan.device_map) == order
    assert plan.source.total_bytes == total_of(model(12))
    assert (plan.source.name, plan.source.format, plan.source.layers) == ("tiny-Q4_K_M", "Q4_K_M", 12)
    assert plan.source.kind == "checkpoint"
    assert any("names are llama.cpp's" in note for note in plan.source.notes)
    said = {name: setting.value for name, setting in plan.settings.items()}
    assert (said["model.num_hidden_layers"], said["model.hidden_size"]) == (12, 256)


def test_a_wished_dtype_changes_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", model(1))
    plan = planner.plan(path, max_memory={"cpu": "1GiB"}, dtype="float16")
    assert plan.source.total_bytes == total_of(model(1))
    assert plan.source.format == "Q6_K", "no file_type is said: most bytes are of this type"


def test_embeddings_that_are_the_head_too_count_once(tmp_path: Path) -> None:
    tensors = {name: stored for name, stored in model(2).items() if name not in HEAD}
    opened = open_source(write_gguf(tmp_path / "m.gguf", tensors))
    plan = planner.plan(opened, max_memory={0: "1GiB"})
    assert plan.source.total_bytes == total_of(tensors)
    assert Layout(opened.tree).tied_groups() == [["output.weight", "token_embd.weight"]]


def test_an_embedding_model_has_no_head(tmp_path: Path) -> None:
    tensors: GgufTensors = {
        "token_embd.weight": ("F16", [256, 64]),
        "blk.0.attn_q.weight": ("F16", [256, 256]),
    }
    opened = open_source(write_gguf(tmp_path / "bert.gguf", tensors, {"general.architecture": "bert"}))
    assert not Layout(opened.tree).has_ties
    assert opened.tree.class_name == "bert"


def split(folder: Path, *, promised: int | None = None, numbers: tuple[int, int] = (0, 1)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    parts = [HEAD, {**EMBEDDING, **{f"blk.0.{name}": stored for name, stored in BLOCK.items()}}]
    count = len(HEAD) + len(EMBEDDING) + len(BLOCK) if promised is None else promised
    paths = []
    for place, tensors in enumerate(parts):
        facts: dict[str, Fact] = {"split.no": numbers[place], "split.count": 2, "split.tensors.count": count}
        paths.append(write_gguf(folder / f"big-{place + 1:05}-of-00002.gguf", tensors, facts))
    return paths


def test_a_model_in_several_files_is_one(tmp_path: Path) -> None:
    paths = split(tmp_path / "folder")
    for source in (tmp_path / "folder", *paths):
        plan = planner.plan(source, max_memory={0: "1GiB"})
        assert plan.source.total_bytes == total_of(model(1))
        assert plan.source.name == ("folder" if source.is_dir() else "big")


def refused(source: Path) -> str:
    with pytest.raises(planner.CheckpointError) as caught:
        planner.plan(source, max_memory={0: "1GiB"})
    return caught.value.reason


def test_files_of_a_model_that_are_missing_or_of_another_are_said(tmp_path: Path) -> None:
    assert "promises 9 tensors; the files hold 6" in refused(split(tmp_path / "a", promised=9)[0])
    assert "says that it is file 5 of 2" in refused(split(tmp_path / "b", numbers=(0, 5))[0])
    paths = split(tmp_path / "c")
    paths[0].unlink()
    assert "1 of 2 files are missing: big-00001-of-00002.gguf" in refused(paths[1])
    paths[1].rename(tmp_path / "alone.gguf")
    assert "one of 2 files; 1 are there" in refused(tmp_path / "alone.gguf")


def test_a_folder_of_several_models_asks_which(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-Q4_K_M.gguf", model(1))
    write_gguf(
        tmp_path / "mmproj-m-f16.gguf",
        {"v.blk.0.attn_q.weight": ("F16", [32, 32]), "mm.0.weight": ("F16", [32])},
    )
    plan = planner.plan(tmp_path, max_memory={0: "1GiB"})
    assert plan.source.total_bytes == total_of(model(1))
    assert any("mmproj-m-f16.gguf beside it is not counted" in note for note in plan.source.notes)
    projector = planner.plan(tmp_path / "mmproj-m-f16.gguf", max_memory={0: 2048, 1: 64})
    assert dict(projector.device_map) == {"v.blk.0": 0, "mm": 1}
    write_gguf(tmp_path / "m-Q8_0.gguf", model(1))
    assert "2 GGUF models, name one of them: m-Q4_K_M.gguf, m-Q8_0.gguf" in refused(tmp_path)


def test_a_file_without_its_ending_is_known_by_its_beginning(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "blob", model(1))
    assert planner.plan(path, max_memory={0: "1GiB"}).source.total_bytes == total_of(model(1))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    facts: dict[str, Fact] = {"general.type": "adapter", "general.base_model.0.name": "Llama 3"}
    path = write_gguf(tmp_path / "lora.gguf", {"blk.0.attn_q.weight.lora_a": ("F16", [32])}, facts)
    assert "is a LoRA adapter of Llama 3, and no model" in refused(path)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def begin(tensors: int, facts: int, *, version: bytes = struct.pack("<I", 3)) -> bytes:
    return b"GGUF" + version + struct.pack("<QQ", tensors, facts)


def tensor(name: str, kind: int, shape: list[int], offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


NESTED = text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + struct.pack("<IQ", 4, 0)

HOSTILE = {
    "no magic": (b"GGML" + bytes(64), "not a GGUF file"),
    "too short": (b"GGUF", "not a GGUF file"),
    "version 1": (begin(0, 0, version=struct.pack("<I", 1)), "GGUF version 1; versions 2 and 3 are read"),
    "big-endian": (begin(0, 0, version=struct.pack(">I", 3)), "a big-endian GGUF file"),
    "tensors": (begin(2**63, 0), f"{2**63} tensors; at most"),
    "facts": (begin(0, 2**40), f"{2**40} facts; at most"),
    "more than there is room for": (begin(1000, 1000), "truncated"),
    "a key": (begin(0, 1) + struct.pack("<Q", 2**63) + bytes(64), "a key has"),
    "a long text": (begin(0, 1) + text("k") + struct.pack("<IQ", 8, 2**64 - 1), "truncated"),
    "a long list": (begin(0, 1) + text("k") + struct.pack("<IIQ", 9, 10, 2**62), "truncated"),
    "a list of texts": (begin(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**62), "truncated"),
    "a list of lists": (begin(0, 1) + NESTED, "nested more than 4 deep"),
    "a type of a value": (begin(0, 1) + text("k") + struct.pack("<I", 13) + bytes(9), "the type number 13"),
    "a type of a list": (
        begin(0, 1) + text("k") + struct.pack("<IIQ", 9, 13, 1),
        "a list of the type number 13",
    ),
    "a key twice": (begin(0, 2) + fact("k", 1) * 2, "lists 'k' twice"),
    "alignment": (begin(0, 1) + fact("general.alignment", 3), "general.alignment is 3, not a power of two"),
    "a name twice": (begin(2, 0) + tensor("a", 0, [0], 0) * 2, "lists 'a' twice"),
    "a long name": (begin(1, 0) + tensor("a" * 65, 0, [0], 0), "the name of a tensor has 65 bytes"),
    "a zero byte": (begin(1, 0) + tensor("a\0b", 0, [0], 0), "zero byte"),
    "no text": (begin(1, 0) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(64), "is not UTF-8"),
    "dimensions": (begin(1, 0) + tensor("a", 0, [1] * 5, 0), "'a' has 5 dimensions"),
    "a type": (begin(1, 0) + tensor("a", 4, [32], 0), "'a' has the type number 4, which is not known"),
    "half a block": (begin(1, 0) + tensor("a", 2, [33], 0), "has no whole blocks of Q4_0"),
    "a huge shape": (begin(1, 0) + tensor("a", 0, [2**40, 2**40], 0), "has no whole blocks of F32"),
    "a gap": (begin(1, 0) + tensor("a", 0, [8], 32), "'a' is not where the tensor before it ends"),
    "overlap": (begin(2, 0) + tensor("a", 0, [8], 0) + tensor("b", 0, [8], 0), "'b' is not where"),
    "no data": (begin(1, 0) + tensor("a", 0, [8], 0), "truncated: the tensors take 32 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_one_error(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    assert reason in refused(written(tmp_path / "bad.gguf", content))


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    content, data_bytes = header({**EMBEDDING, **HEAD}, {"general.architecture": "llama", "t": ["a", "b"]})
    for length in range(0, len(content) + data_bytes, 7):
        path = written(tmp_path / "cut.gguf", (content + bytes(data_bytes))[:length])
        with pytest.raises(planner.CheckpointError):
            planner.plan(path, max_memory={0: "1GiB"})


def test_a_name_that_no_module_has_is_refused(tmp_path: Path) -> None:
    tensors: GgufTensors = {"a": ("F32", [1]), "a.b": ("F32", [1])}
    assert "cannot be the name of a tensor" in refused(write_gguf(tmp_path / "m.gguf", tensors))


def test_names_of_formats_are_those_of_llama_cpp() -> None:
    """Recorded from ``LlamaFileType`` of gguf 0.19."""
    known = {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        7: "Q8_0",
        15: "Q4_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        24: "IQ1_S",
        32: "BF16",
    }
    assert {number: FILE_TYPES[number] for number in (*known, 36, 40)} == {**known, 36: "TQ1_0", 40: "Q1_0"}
