"""Tables that never break what a person copies out of them: ids, addresses, wallets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text
from typing_extensions import override

#: A column of words is not made narrower than this.
_WORDS = 28
#: Of a row in lines.
_GAP, _INDENT = "   ", "  "


class Listing(Table):
    """A table where the window has room for its columns; else each row is some lines, its first cell above the others.

    A column with ``no_wrap`` is as wide as its cells; in others what is long goes on in the next line. What does not
    go to a terminal is searched in and cut by other programs: it is a table, however wide.
    """

    @override
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = sum(self._needed(console, options)) + 2 * (len(self.columns) - 1)
        if needed <= options.max_width or not console.is_terminal:
            at_least = max(needed, options.max_width)
            yield from super().__rich_console__(console, options.update_width(at_least))
            return
        cells = [[_text(console, cell) for cell in column.cells] for column in self.columns]
        for row, texts in zip(self.rows, zip(*cells, strict=True), strict=True):
            for line in self._lines(console, texts, options.max_width):
                line.stylize_before(row.style or "")
                yield line

    def _needed(self, console: Console, options: ConsoleOptions) -> Iterator[int]:
        anything = options.update(max_width=1_000_000)
        for column in self.columns:
            widest = measure_renderables(console, anything, [column.header, *column.cells]).maximum
            yield widest if column.no_wrap else min(widest, _WORDS)

    def _lines(self, console: Console, cells: Sequence[Text], width: int) -> Iterator[Text]:
        """Yield lines with as many cells as there is room for, each behind its column's name."""
        line = Text()
        for column, cell in zip(self.columns, cells, strict=True):
            if not cell:
                continue
            named = Text.assemble((f"{column.header} " if column.header else "", "dim"), cell)
            if column is self.columns[0]:
                named.stylize("bold")
                yield named
            elif line and line.cell_len + len(_GAP) + named.cell_len <= width:
                line.append(_GAP).append(named)
            else:
                if line:
                    yield line
                *whole, rest = _wrapped(console, named, width - len(_INDENT))
                yield from (Text(_INDENT).append(text) for text in whole)
                line = Text(_INDENT).append(rest)
        if line:
            yield line


def _wrapped(console: Console, text: Text, width: int) -> Sequence[Text]:
    """Break words over lines; but what has one that is too long is left to the terminal, where it can be copied whole."""
    if max(map(cell_len, text.plain.split())) > width:
        return [text]
    lines = list(text.wrap(console, width))
    for line in lines:
        line.rstrip()
    return lines


def _text(console: Console, cell: object) -> Text:
    return cell if isinstance(cell, Text) else console.render_str(str(cell))
