"""How one name in a file becomes one or several live names: transformers' own steps, as data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

_GROUP = re.compile(r"\\(\d+)")
_QUANTISED = re.compile(r"(.*\.weight)(_[a-z_]+)")


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A step: patterns, and what they are replaced by.

    Args:
        kind: "rename" (all that match are applied), "convert" (at most one), "group" (later patterns only once the first one
            was met), "offset" (the number that was met, and so many more).
        pattern: one expression with a group ``g<number>`` for each source.
        targets: replacements: of all sources the first, of a group the source's own; a converter makes all of them.
        scope: prefix below which it works, with one level of ``base`` more or less; None for everywhere.
        base: local name of the model without its head.
        offset: what is added to a number.
        is_plain: whether what it does is independent of the value of any number in the name.

    Source: ``WeightTransform`` and its subclasses, transformers 5.23, core_model_loading.py.
    """

    kind: str
    pattern: str
    targets: list[str]
    scope: str | None = None
    base: str = ""
    offset: int = 0
    is_plain: bool = True

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def match(self, name: str) -> _Match | None:
        """Where it applies to a name, if it does."""
        prefix = ""
        if self.scope is not None:
            scope = f"{self.scope}." if self.scope else ""
            base = f"{self.base}." if self.base else ""
            if name.startswith(base + scope):
                prefix = base + scope
            elif name.startswith(scope):
                prefix = scope
            else:
                return None
        rest = name[len(prefix) :]
        found = self._expression.search(rest)
        if found is None:
            return None
        group = next(key for key, text in found.groupdict().items() if text is not None)
        return _Match(self, prefix, rest, found, group)


@dataclass(frozen=True, slots=True)
class _Match:
    """A step and the place in a name where it applies."""

    step: Transform
    prefix: str
    rest: str
    found: re.Match[str]
    group: str

    @property
    def source(self) -> int:
        """Which of the step's sources was met."""
        return int(self.group[1:])

    def applied(self, target: str) -> str:
        """The name with the match replaced."""
        return self.prefix + self.rest.replace(self.found.group(0), self._filled(target), 1)

    def _filled(self, target: str) -> str:
        first = self.found.re.groupindex[self.group]
        if self.step.kind == "group":
            return _GROUP.sub(lambda number: self.found.group(first + int(number.group(1))), target)
        if r"\1" not in target:
            return target
        text = self.found.group(first + 1)
        return target.replace(r"\1", str(int(text) + self.step.offset) if self.step.offset else text)


@dataclass
class Renaming:
    """The steps of one load; names must come in natural order, because groups wait for their first pattern.

    Args:
        steps: in order.
        base_prefix: local name of the model without its head, which files may have or lack.
        is_live: whether the model has a tensor of this name.
    """

    steps: tuple[Transform, ...]
    base_prefix: str
    is_live: Callable[[str], bool]
    _met: set[int] = field(default_factory=set)

    def live_names(self, name: str) -> list[str]:
        """What a tensor in a file is called in the model; several names if it is taken apart."""
        renamed = self._converted(self._renamed(name))
        live = [self._prefixed(target) for target in renamed]
        if any(map(self.is_live, live)):
            return [target for target in live if self.is_live(target)]
        kept = self._prefixed(name)
        return [kept] if self.is_live(kept) else live

    def _renamed(self, name: str) -> str:
        for number, step in enumerate(self.steps):
            match = None if step.kind == "convert" else step.match(name)
            if match is None:
                continue
            if step.kind != "group":
                name = match.applied(step.targets[0])
            elif match.source == 0 or number in self._met:
                self._met.add(number)
                name = match.applied(step.targets[match.source])
        return name

    def _converted(self, name: str) -> list[str]:
        for step in self.steps:
            match = step.match(name) if step.kind == "convert" else None
            if match is not None:
                first = match.applied(step.targets[0])
                return list(dict.fromkeys(first.replace(step.targets[0], target) for target in step.targets))
        companion = _QUANTISED.fullmatch(name)
        if companion is None:
            return [name]
        # Scales go where their weights go: `w1.weight_scale_inv` is fused as `w1.weight` is.
        stem, suffix = companion.groups()
        converted = self._converted(stem)
        return [name] if converted == [stem] else [target + suffix for target in converted]

    def _prefixed(self, name: str) -> str:
        if not self.base_prefix:
            return name
        if name.startswith(self.base_prefix):
            stripped = name[len(self.base_prefix) + 1 :]
            if stripped and self.is_live(stripped):
                return stripped
        added = f"{self.base_prefix}.{name}"
        return added if self.is_live(added) else name
