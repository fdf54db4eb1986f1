"""A plan in a terminal: bars by device, the folded tree, and what should not be missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from planner.model.tree import ModuleTree
from planner.names import counted
from planner.plans.notices import notices
from planner.plans.plan import Plan
from planner.report.folding import Fold, fold_rows
from planner.report.rows import Rows, plan_rows, uncounted_notices
from planner.report.terminal_bars import bars_table, device_styles
from planner.spelling import one_line
from planner.units import format_bytes

__all__ = ["PlanView", "plan_view"]

_ASCII = str.maketrans({"→": "->", "×": "x"})
_MOST_LINES = 24  # below one line of the tree


def plan_view(plan: Plan, tree: ModuleTree | None = None) -> PlanView:
    """A picture of a plan for ``rich.print`` and ``Console.print``.

    Args:
        plan: the plan.
        tree: the model it was made for; without it, the tree is that of the names in the plan.

    Returns:
        Something that rich can draw, at any width; nothing is told by colour alone, and it can be piped.

    Raises:
        PlanMismatchError: the tree is not the one that was planned. Fields: ``findings``.

    Cost: O(modules + tensors).

    Example:
        >>> import torch
        >>> from planner import plan
        >>> from rich.console import Console
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> view = plan_view(plan(model, max_memory={0: 1000, "cpu": 2000}))
        >>> Console(width=60, color_system=None).print(view)  # doctest: +ELLIPSIS
        4 blocks, 1.56 KiB
        ...
    """
    rows = plan_rows(plan, tree)
    return PlanView(plan=plan, rows=rows, fold=fold_rows(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """A plan with its rows, folded; rich draws it."""

    plan: Plan
    rows: Rows
    fold: Fold

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        source, is_ascii = self.plan.source, options.ascii_only
        yield Text(f"{counted(source.blocks, 'block')}, {format_bytes(source.total_bytes)}", style="bold")
        yield Text()
        yield bars_table(self.plan.devices, is_ascii=is_ascii, width=options.max_width)
        yield Text()
        tree = Tree(self._line(self.fold, is_ascii), guide_style="dim")
        self._grow(tree, self.fold, is_ascii)
        yield tree
        said = [*uncounted_notices(self.rows), *map(str, notices(self.plan))]
        if said:
            yield Text()
            yield _notices_grid(said, is_ascii)

    def _grow(self, tree: Tree, fold: Fold, is_ascii: bool) -> None:
        shown = fold.inside if len(fold.inside) <= _MOST_LINES else fold.inside[: _MOST_LINES - 1]
        for line in shown:
            self._grow(tree.add(self._line(line, is_ascii)), line, is_ascii)
        left = fold.inside[len(shown) :]
        if left:
            size = format_bytes(sum(line.size_bytes for line in left))
            tree.add(Text(f"and {sum(line.count for line in left)} more, {size}", style="italic"))

    def _line(self, fold: Fold, is_ascii: bool) -> Text:
        """Name, bytes, device: the device in words, its colour only repeats them."""
        devices = self.rows.devices
        parts = [
            (fold.label, "bold" if fold.inside else ""),
            (f"  {format_bytes(fold.size_bytes) if fold.size_bytes else 'no bytes of its own'}", "dim"),
        ]
        if fold.count > 1:
            parts.append((f"  {fold.count} ×", "dim"))
        if fold.home >= 0:
            parts += [("  → ", "dim"), (str(devices[fold.home]), device_styles(devices)[fold.home])]
        if fold.home >= 0 and fold.run >= 0 and fold.run != fold.home:
            parts.append((f", runs on {devices[fold.run]}", ""))
        return Text.assemble(*((_visible(words, is_ascii=is_ascii), style) for words, style in parts))


def _notices_grid(said: Sequence[str], is_ascii: bool) -> Table:
    """A list whose items keep clear of their mark when they wrap."""
    grid = Table.grid(padding=(0, 1))
    for notice in said:
        grid.add_row(Text("!", style="bold yellow"), Text(_visible(notice, is_ascii=is_ascii)))
    return grid


def _visible(text: str, *, is_ascii: bool = False) -> str:
    """Text with what a terminal would obey, or could not show, spelled out.

    Args:
        text: a name, or a line of ours.
        is_ascii: the terminal knows nothing but ASCII.

    Example:
        >>> _visible("a\\x1b[31m\\u202eb"), _visible("größe")
        ('a\\\\x1b[31m\\\\u202eb', 'größe')
        >>> _visible("größe → 0", is_ascii=True)
        'gr\\\\xf6\\\\xdfe -> 0'
    """
    plain = one_line(text)
    if not is_ascii:
        return plain
    return plain.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
