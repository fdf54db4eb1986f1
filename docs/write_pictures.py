"""Writes the picture in the README: the first screen of `planner demo`, for light and dark pages; `make docs` runs it."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

import planner
from planner.checkpoint.source import open_source
from planner.cli.demo import BUDGETS
from planner.cli.synthetic import EXAMPLES, write_synthetic
from planner.report.terminal import plan_view

FOLDER = Path(__file__).parent / "pictures"
_COLUMNS = 110
_LIGHT = ((255, 255, 255), (36, 41, 47))
_DARK = ((13, 17, 23), (230, 237, 243))
# The colours that GitHub's own pages have for black, red, green, yellow, blue, magenta, cyan and white.
_ON_LIGHT = [(36, 41, 47), (207, 34, 46), (17, 99, 41), (77, 45, 0)]
_ON_LIGHT += [(9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129)]
_ON_DARK = [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)]
_ON_DARK += [(88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)]

# rich's own form loads a font from elsewhere; a page that shows this one loads nothing.
_FORM = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>The first screen of planner demo</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
{styles}
</style>
<defs>{lines}</defs>
<rect width="{width}" height="{height}" rx="6" fill="BACKGROUND"/>
<g transform="translate(12, 12)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def pictures() -> dict[str, str]:
    """Each file by its name."""
    themes = {"light": TerminalTheme(*_LIGHT, _ON_LIGHT), "dark": TerminalTheme(*_DARK, _ON_DARK)}
    return {f"first-screen-{name}.svg": _picture(theme) for name, theme in themes.items()}


def _picture(theme: TerminalTheme) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, EXAMPLES[0])
        write_synthetic(folder)
        opened = open_source(folder)
    view = plan_view(planner.plan(opened, max_memory=BUDGETS))
    console = Console(
        record=True, file=io.StringIO(), width=_COLUMNS, force_terminal=True, color_system="truecolor"
    )
    console.print(view)
    form = _FORM.replace("BACKGROUND", theme.background_color.hex)
    drawn = console.export_svg(title="", theme=theme, code_format=form, unique_id="planner")
    return "\n".join(line.rstrip() for line in re.sub(r"\n{2,}", "\n", drawn).splitlines()) + "\n"


def main() -> None:
    """Writes them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
