"""A stage reads its own tensors and no others."""

from __future__ import annotations

from stage_models import family, stages_of


def test_all_stages_together_read_each_byte_once() -> None:
    saved = family("llama")
    stages = stages_of(saved.folder, (2, 3))
    whole_bytes = sum(parameter.nbytes for parameter in saved.model.parameters())
    assert sum(stage.read_bytes for stage in stages) == whole_bytes
    assert all(stage.read_bytes < whole_bytes for stage in stages)
