"""The bug and the wishes that this configuration was built for."""

from __future__ import annotations

from planner.config import Rank, Stack, config, setting


@config
class Transformer:
    hidden_size: int = 1024
    init_std: float = setting(default=0.0, compute=lambda block, root: block.hidden_size**-0.5)
    dropout: float = 0.0


@config
class Training:
    model: Transformer = Transformer()


IMPORT = {"model": {"hidden_size": 4096, "dropout": 0.1}}


def test_an_override_that_equals_the_default_survives_serialisation():
    first = Stack(Training).imported(IMPORT).set({("model", "dropout"): 0.0}).resolve()
    dump = first.dump()
    assert dump == {"model": {"dropout": 0.0}}
    second = Stack(Training).imported(IMPORT).set(**dump).resolve()
    assert second.config == first.config
    assert second.config.model.dropout == 0.0


def test_a_computed_value_follows_the_import():
    default = Stack(Training).resolve().config.model.init_std
    resolved = Stack(Training).imported(IMPORT).resolve()
    assert (default, resolved.config.model.init_std) == (1024**-0.5, 4096**-0.5)
    assert resolved.origin("model.init_std").note == "from model.hidden_size"


def test_the_user_wins_over_the_import_in_what_is_computed():
    resolved = Stack(Training).imported(IMPORT).set(model={"hidden_size": 2048}).resolve()
    assert resolved.config.model.hidden_size == 2048
    assert resolved.config.model.init_std == 2048**-0.5


def test_anybody_can_ask_where_a_value_came_from():
    resolved = Stack(Training).imported(IMPORT).set(model={"hidden_size": 2048}).resolve()
    ranks = {name: resolved.origin(f"model.{name}").rank for name in ("hidden_size", "init_std", "dropout")}
    assert ranks == {"hidden_size": Rank.USER, "init_std": Rank.COMPUTED, "dropout": Rank.IMPORTED}
    text = resolved.explain("model.hidden_size")
    assert "4096  <- imported · import at test_seed.py:" in text
    assert "1024  <- default · test_seed.py:10  [shadowed]" in text
    assert "read by model.init_std" in text
