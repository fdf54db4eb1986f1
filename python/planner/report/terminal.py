"""The first screen in a terminal: the answer, bars by device, the strip, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from planner.plans.first_screen import FirstScreen, first_screen
from planner.plans.no_plan import NoPlan
from planner.plans.plan import Plan
from planner.report.device_looks import shown
from planner.report.terminal_bars import bar_lines
from planner.report.terminal_strip import strip_lines

__all__ = ["PlanView", "plan_view"]

_Row: TypeAlias = tuple[str, str, list[str]]  # mark, its style, lines

_MARKS = {"bad": " ! ", "hint": " i "}
_TONES = {"good": "bold green", "bad": "bold yellow", "no": "bold red"}


def plan_view(plan: Plan | NoPlan, *, remarks: Sequence[str] = ()) -> PlanView:
    """A picture of a plan for ``rich.print`` and ``Console.print``.

    Args:
        plan: the plan, also one that was read from a file; where there is none, what
            :func:`planner.planning.partial.partial_plan` says of the attempt.
        remarks: further notices, such as what was looked for where no accelerator was found.

    Returns:
        Something that rich can draw, at any width; nothing is told by colour alone, and it can be piped.

    Cost: O(blocks · depth).

    Example:
        >>> import torch
        >>> from planner import plan
        >>> from rich.console import Console
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> view = plan_view(plan(model, max_memory={0: 1000, "cpu": 2000}))
        >>> Console(width=80, color_system=None).print(view)  # doctest: +ELLIPSIS
        Sequential  float32, 1.56 KiB, 4 layers
        Does not fit on GPU 0: 1.17 KiB rest in RAM and are streamed for each token.
        ...
    """
    return PlanView(screen=first_screen(plan, remarks=remarks))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """A first screen as rich draws it."""

    screen: FirstScreen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        screen, is_ascii = self.screen, options.ascii_only
        name, facts, verdict = (
            shown(text, is_ascii=is_ascii) for text in (screen.name, screen.facts, screen.verdict)
        )
        yield Text.assemble((name, "bold"), f"  {facts}")
        yield Text(verdict, style=_TONES[screen.tone])
        yield Text()
        yield from bar_lines(screen.devices, is_ascii=is_ascii, width=options.max_width)
        if screen.strip:
            devices = [line.device.id for line in screen.devices]
            others = [piece.home for piece in screen.strip if piece.home not in devices]
            known = list(dict.fromkeys([*devices, *others]))
            yield Text()
            yield from strip_lines(screen.strip, known, is_ascii=is_ascii, width=options.max_width)
        rows = [*self._advice(options.max_width), *self._notices()]
        if rows:
            yield Text()
        for mark, style, lines in rows:
            words = "\n".join(shown(line, is_ascii=is_ascii) for line in lines)
            # Wrapped words keep clear of their mark.
            for number, line in enumerate(Text(words).wrap(console, options.max_width - len(mark))):
                yield Text.assemble((mark if number == 0 else " " * len(mark), style), line)

    def _advice(self, width: int) -> Iterator[_Row]:
        """What to do: in a line each, or where that is too long, a line for each way."""
        longest = max((len(each.aim) for each in self.screen.advice), default=0)
        for each in self.screen.advice:
            in_one_line = ", or ".join(each.ways)
            fits = longest + 3 + len(in_one_line) <= width
            yield f" {each.aim:<{longest}}  ", "bold", [in_one_line] if fits else _or_lines(each.ways)

    def _notices(self) -> Iterator[_Row]:
        for notice in self.screen.notices:
            yield _MARKS[notice.kind], "bold yellow", [notice.text]


def _or_lines(ways: Sequence[str]) -> list[str]:
    first, *others = ways
    lines = [first, *(f"or {way}" for way in others)]
    return [*(f"{line}," for line in lines[:-1]), lines[-1]]
