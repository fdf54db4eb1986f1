"""Why the guard compares stored bytes with the budget, and not the larger of both sizes with budget − reservation."""

from torch import bool as torch_bool
from torch import empty, nn, uint8

from oracle.repaired_accelerate import accelerate_answer
from planner import infer_auto_device_map


def leaf(size_bytes: int, flags: int = 0) -> nn.Module:
    module = nn.Module()
    weight = empty(size_bytes, dtype=uint8, device="meta")
    module.w = nn.Parameter(weight, requires_grad=False)
    if flags:
        module.register_buffer("mask", empty(flags, dtype=torch_bool, device="meta"))
    return module


def test_a_valid_map_survives_though_stored_bytes_and_reservation_together_exceed_the_budget() -> None:
    model = nn.Module()
    model.a, model.c, model.b = leaf(100, flags=800), leaf(300), leaf(900)
    budgets = {0: 1150, "cpu": 5000}
    answer = accelerate_answer(model, budgets)
    assert answer.binding
    # a is 200 bytes by formula and 900 as stored; the largest layer, b, is 900: 900 + 900 > 1150, yet a may stay on 0.
    assert answer.device_map == {"a": 0, "c": "cpu", "b": "cpu"}
    assert dict(infer_auto_device_map(model, budgets)) == answer.device_map
