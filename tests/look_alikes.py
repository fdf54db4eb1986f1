"""Models built as torchvision builds its own: stages in containers, blocks with a forward of their own inside. Small, but with
the shares of the originals; on the meta device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class ConvNormActivation(nn.Sequential):
    """A Sequential by another name: no forward of its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Mlp(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.block = nn.Sequential(
            ConvNormActivation(inputs, inner, 1), ConvNormActivation(inner, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if y.shape == x.shape else y


class AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(width), nn.MultiheadAttention(width, 4), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(x)


class Merging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduction(x)
        return y


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, 4 * growth, 1), nn.Conv2d(4 * growth, growth, 3, padding=1)

    def forward(self, parts: list[Tensor]) -> Tensor:
        y: Tensor = self.conv2(self.conv1(torch.cat(parts, 1)))
        return y


class DenseBlock(nn.ModuleDict):
    """A ModuleDict with a forward of its own, in which the results of all its layers meet."""

    def __init__(self, layers: int, inputs: int, growth: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", DenseLayer(inputs + index * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.values():
            parts.append(layer(parts))
        return torch.cat(parts, 1)


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, width))
        named = OrderedDict((f"encoder_layer_{index}", AttentionBlock(width)) for index in range(layers))
        self.layers, self.ln = nn.Sequential(named), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ln(self.layers(x + self.pos_embedding))
        return y


class Features(nn.Module):
    """Most of torchvision's classifiers: what is in `features`, one after the other, and a classifier."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.classifier = features, nn.Sequential(nn.Dropout(), nn.Linear(width, 100))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


def efficientnet() -> nn.Module:
    widths, repeats = (8, 12, 16, 24, 40, 56), (1, 2, 2, 3, 4)
    stages: list[nn.Module] = [ConvNormActivation(3, 8)]
    for (inputs, outputs), count in zip(pairwise(widths), repeats, strict=True):
        stages.append(
            nn.Sequential(*(InvertedResidual(inputs if n == 0 else outputs, outputs) for n in range(count)))
        )
    return Features(nn.Sequential(*stages, ConvNormActivation(56, 96, 1)), 96)


def swin() -> nn.Module:
    width = 16
    stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2))]
    for depth in (2, 2, 6):
        stages.append(nn.Sequential(*(AttentionBlock(width) for _ in range(depth))))
        stages.append(Merging(width))
        width *= 2
    return Features(nn.Sequential(*stages, AttentionBlock(width)), width)


def densenet() -> nn.Module:
    named: OrderedDict[str, nn.Module] = OrderedDict(conv0=nn.Conv2d(3, 16, 7), norm0=nn.BatchNorm2d(16))
    width = 16
    for stage, layers in enumerate((3, 6, 12, 8), start=1):
        named[f"denseblock{stage}"] = DenseBlock(layers, width, 8)
        width += 8 * layers
        if stage < 4:
            named[f"transition{stage}"] = ConvNormActivation(width, width // 2, 1)
            width //= 2
    return Features(nn.Sequential(named), width)


def regnet() -> nn.Module:
    """Stages called block1 to block4, and blocks in them called block1-0 and so on, as torchvision calls them."""
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    widths = (8, 16, 32, 56)
    for stage, (inputs, outputs, count) in enumerate(
        zip((8, *widths), widths, (1, 2, 6, 4), strict=False), start=1
    ):
        blocks = (
            (f"block{stage}-{n}", InvertedResidual(inputs if n == 0 else outputs, outputs))
            for n in range(count)
        )
        trunk[f"block{stage}"] = nn.Sequential(OrderedDict(blocks))
    return Features(nn.Sequential(trunk), 56)


def vit() -> nn.Module:
    return Features(nn.Sequential(OrderedDict(conv_proj=nn.Conv2d(3, 32, 16), encoder=Encoder(32, 8))), 32)


LOOK_ALIKES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "efficientnet": (efficientnet, ("InvertedResidual",)),
    "swin": (swin, ("AttentionBlock", "Merging")),
    "densenet": (densenet, ("DenseLayer",)),
    "regnet": (regnet, ("InvertedResidual",)),
    "vit": (vit, ("AttentionBlock",)),
}
"""By name: how to build it, and classes that no plan may cut."""
