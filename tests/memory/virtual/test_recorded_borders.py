"""What the code of modules around blocks makes lies where dispatch runs it, and what the model's own weights decide is decided alike."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import MoEModelOutput

import planner
from measured_peaks import measured_peaks, run_of
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import AFTER, CALL, FORGET, FREE, MADE, PHASE, Enclosing, Tape
from planner.memory.vectors import demands_of
from rig import Accelerators

WIDTH, ROWS = 16, 8


class Tower(nn.Module):
    """Makes something large of its input before its layers run, as towers make masks."""

    def __init__(self, *, has_weight: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH)) if has_weight else None
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x[:, None].expand(len(x), 64, WIDTH).contiguous()
        wide = wide + torch.ones(wide.shape, device=x.device)
        if self.scale is not None:
            wide = wide * self.scale
        x = x + wide.sum(1)
        for layer in self.layers:
            x = layer(x)
        return x


class Net(nn.Module):
    """A layer, and a tower behind it."""

    def __init__(self, *, has_weight: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.tower = Tower(has_weight=has_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tower(self.first(x))


BLOCKS = ["first", "tower.layers.0", "tower.layers.1"]


@pytest.mark.parametrize(
    ("homes", "has_weight"),
    [((0, 1, 1), False), ((0, 1, 0), False), ((0, 0, 1), True), ((1, 0, 0), False), ((1, 1, 0), True)],
)
def test_the_border_around_blocks(
    virtual_accelerators: Accelerators, homes: tuple[int, ...], has_weight: bool
) -> None:
    """It brings the arguments where all inside runs, or the own weight of the module around; else they stay."""
    model: Any = Net(has_weight=has_weight)
    blocks = [*BLOCKS, "tower.scale"] if has_weight else BLOCKS
    execution = dict(zip(blocks, (*homes, 1), strict=False))
    given = {"x": torch.ones(ROWS, WIDTH)}
    tape = record_run(model, blocks, run_of(given, 0, {}))
    planner.dispatch(model, execution)
    weights = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    real = measured_peaks(model, virtual_accelerators, given, steps=0, options={})
    placement = RunPlacement(execution=execution, main_device=0, resident_bytes=weights)
    assert replay(tape, placement)["prefill"] == {index: real["prefill"][index] for index in (0, 1)}


@pytest.mark.parametrize("homes", [(0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 1)])
def test_the_border_of_the_whole_model(
    virtual_accelerators: Accelerators, homes: tuple[int, int, int]
) -> None:
    """With a weight of its own, its code runs where that does, and not where the inputs come from."""
    model: Any = Tower(has_weight=True)
    model.config = SimpleNamespace(is_encoder_decoder=False)
    execution = dict(zip(["layers.0", "layers.1", "scale"], homes, strict=True))
    given = {"x": torch.ones(ROWS, WIDTH)}
    tape = record_run(model, list(execution), run_of(given, 0, {}))
    planner.dispatch(model, execution)
    weights = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    real = measured_peaks(model, virtual_accelerators, given, steps=0, options={})
    placement = RunPlacement(execution=execution, main_device=0, resident_bytes=weights)
    assert replay(tape, placement)["prefill"] == {index: real["prefill"][index] for index in (0, 1)}
    # And it is counted with that weight.
    needs = {name: demand.needs_bytes for name, demand in demands_of([tape]).blocks.items()}
    assert max(needs, key=needs.__getitem__) == "scale"


def test_a_weight_that_asks_for_gradients_is_multiplied_as_such(virtual_accelerators: Accelerators) -> None:
    """torch copies what such a weight is multiplied with, where that is no matrix as it lies; also where no gradients are kept."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(is_encoder_decoder=False)
            self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.transpose(1, 2))

    peaks = []
    for asks in (True, False):
        model: Any = Turned().requires_grad_(asks)
        given = {"x": torch.ones(ROWS, WIDTH, 32)}
        tape = record_run(model, ["layer"], run_of(given, 0, {}))
        model.to(0)
        weights = {0: virtual_accelerators.used_bytes(0)}
        real = measured_peaks(model, virtual_accelerators, given, steps=0, options={})
        found = replay(tape, RunPlacement(execution={}, main_device=0, resident_bytes=weights))
        assert found["prefill"][0] == real["prefill"][0]
        peaks.append(found["prefill"][0] - weights[0])
    assert peaks[0] > peaks[1]


def test_more_blocks_than_torch_has_numbers_of_devices() -> None:
    """Its numbers are signed bytes; a tensor of the last block lies beside the last block nevertheless."""

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(300))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
                y = torch.ones(1000, device=x.device)
            return y

    blocks = [f"layers.{number}" for number in range(300)]
    tape = record_run(Long(), blocks, RecordedRun(inputs={"x": ((1, 1), torch.float32)}, steps=0))
    placement = RunPlacement(
        execution={name: number // 100 for number, name in enumerate(blocks)}, main_device=0
    )
    assert all(size > 4000 for size in replay(tape, placement)["prefill"].values())
    made = [event for event in tape.events if event[0] == MADE and event[4] == "aten.ones.default"]
    assert [event[3] for event in made] == list(range(1, 301))


class Sequel(nn.Module):
    """An encoder and a decoder, with a forward that does not go without the encoder's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=True)
        self.encoder = Routed()
        self.decoder = nn.Linear(1, 1)

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def forward(
        self,
        input_ids: torch.Tensor | None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        state: Any = None,
    ) -> Any:
        encoded = self.encoder(input_ids) if encoder_outputs is None else encoder_outputs
        assert decoder_input_ids is not None
        found = self.decoder(decoder_input_ids.float()[..., None])
        assert encoded.router_logits is None
        return SequelOutput(
            encoder_last_hidden_state=encoded.last_hidden_state, state=[found], last_hidden_state=found
        )


class Routed(nn.Module):
    """An encoder whose output has more than others'."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        return MoEModelOutput(last_hidden_state=input_ids.float()[..., None])


@dataclass
class SequelOutput:
    """What such a model returns."""

    encoder_last_hidden_state: torch.Tensor
    state: list[torch.Tensor]
    last_hidden_state: torch.Tensor


def test_steps_get_the_output_of_the_models_own_encoder() -> None:
    """Those of mixtures have more in it, which decoders read; and each token keeps its several numbers."""
    shapes = {"input_ids": ((2, 5), torch.long), "decoder_input_ids": ((2, 4, 3), torch.long)}
    tape = record_run(Sequel(), ["encoder", "decoder"], RecordedRun(inputs=shapes))
    assert tape.phases == ("prefill", "decode", "decode 2")
    inputs = [event[2] for event in tape.events if event[0] == MADE and event[4] == "aten.zeros.default"]
    assert inputs == [2 * 5 * 8, 2 * 4 * 3 * 8, 2 * 1 * 3 * 8, 2 * 1 * 3 * 8]


def test_the_device_of_what_a_mapped_function_gets() -> None:
    """Masks are made by functions over positions, which ask where these lie."""

    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def later(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
                return row >= column + torch.zeros((), dtype=torch.long, device=row.device)

            at = torch.arange(x.shape[1], device=x.device)
            return torch.vmap(torch.vmap(later, (None, 0)), (0, None))(at, at) * x[:, None]

    tape = record_run(Masked(), [], RecordedRun(inputs={"x": ((2, 7), torch.float32)}, steps=0))
    assert tape.phases == ("prefill",)


def test_a_module_around_blocks_is_where_all_inside_is() -> None:
    """Without one device for all inside, and without a tensor of its own, what it gets stays where it was."""
    tape = Tape(
        ("a", "b"),
        (
            (PHASE, "prefill"),
            (CALL, 0, ((0, -1, 0, 8),)),
            (MADE, 0, 64, 3, "add"),
            (FREE, 0),
            (FORGET, 0),
            (AFTER,),
        ),
        enclosing=(Enclosing((1, 2)),),
        carried=((0, 0),),
    )
    for homes, peaks in (((1, 1), {0: 0, 1: 72}), ((1, 0), {0: 64, 1: 0}), ((0, 0), {0: 64})):
        placement = RunPlacement(execution=dict(zip("ab", homes, strict=True)), main_device=0)
        assert replay(tape, placement)["prefill"] == peaks


class Moving(nn.Module):
    """Puts a buffer where its input lies, by hand, and makes something of its size afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.table = nn.Buffer(torch.ones(ROWS, 512))
        self.layer = nn.Linear(512, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        self.table = self.table.to(x.device)
        wide = torch.ones(ROWS, 512, device=x.device)
        return x + self.table + wide


@pytest.mark.parametrize("homes", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_buffer_that_a_forward_moves(virtual_accelerators: Accelerators, homes: tuple[int, int]) -> None:
    """On one device that is no copy; on two, the buffer has left its own. What comes after it does not pass for the buffer."""
    model: Any = Moving()
    execution = dict(zip(["table", "layer"], homes, strict=True))
    given = {"x": torch.ones(ROWS, 512)}
    tape = record_run(model, ["table", "layer"], run_of(given, 0, {}))
    planner.dispatch(model, execution)
    weights = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    main = min(homes)
    real = measured_peaks(model, virtual_accelerators, given, steps=0, options={}, device=main)
    placement = RunPlacement(execution=execution, main_device=main, resident_bytes=weights)
    assert replay(tape, placement)["prefill"] == {
        device: real["prefill"][device] for device in placement.devices
    }
    assert virtual_accelerators.used_bytes(homes[0]) < weights[homes[0]] or homes[0] == homes[1]


class Returning(nn.Module):
    """Puts what a layer returns elsewhere, by hand, and goes on with that."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.first = nn.Linear(WIDTH, 512)
        self.second = nn.Linear(512, 1024)
        self.third = nn.Linear(512, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = self.first(x).to(x.device)
        wide = self.second(moved)
        return self.third(moved) + wide.sum().to(x.device)


@pytest.mark.parametrize("homes", [(0, 0, 0), (1, 1, 0), (1, 0, 0), (0, 1, 1)])
def test_what_a_forward_moves_is_gone_from_where_it_was(
    virtual_accelerators: Accelerators, homes: tuple[int, int, int]
) -> None:
    """On one device nothing was moved, and it is there as long as its copy."""
    model: Any = Returning()
    execution = dict(zip(["first", "second", "third"], homes, strict=True))
    given = {"x": torch.ones(ROWS, WIDTH)}
    tape = record_run(model, list(execution), run_of(given, 0, {}))
    planner.dispatch(model, execution)
    weights = {index: virtual_accelerators.used_bytes(index) for index in (0, 1)}
    main = min(homes)
    real = measured_peaks(model, virtual_accelerators, given, steps=0, options={}, device=main)
    placement = RunPlacement(execution=execution, main_device=main, resident_bytes=weights)
    assert replay(tape, placement)["prefill"] == {
        device: real["prefill"][device] for device in placement.devices
    }
