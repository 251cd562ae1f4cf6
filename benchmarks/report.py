# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page docs/benchmarks.md, and its plots."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from figure import Figure

HEAD = """\
<!-- Made by `make bench`: change benchmarks/, not this file. -->
# Benchmarks

What ooodd costs, side by side with what it is compared with. `make bench` boots a throwaway machine, installs the
package, and measures all paths in turn, so that other load on the machine meets all of them. A ratio is that of two
values of the same round; the table has its median and quartiles over all rounds. Times of other machines differ; ratios
much less. All offices are the same program and start with the same profile. [benchmarks.json](benchmarks.json) has all
values.

"""
# Of a plot, in pixels.
WIDTH, LABEL, BAR, GAP = 720, 230, 20, 10


def page(machine: dict[str, str], figures: Iterable[Figure]) -> str:
    """Return the page."""
    facts = "".join(f"- {name}: {value}\n" for name, value in machine.items())
    return HEAD + facts + "".join(_section(figure) for figure in figures)


def _section(figure: Figure) -> str:
    compared = f" ÷ {figure.reference}" if figure.reference else ""
    lines = ["", f"## {figure.title}", ""]
    if len(figure.rounds) > 1:
        lines += [f"![{figure.title}](benchmarks/{figure.name}.svg)", ""]
    header = f"| | {figure.unit} | quartiles |" + (f" ratio{compared} | quartiles | goal |" if compared else "")
    lines += [header, "| --- | ---: | --- |" + (" ---: | --- | --- |" if compared else "")]
    lines += [_row(figure, path) for path in figure.rounds]
    if figure.note:
        lines += ["", figure.note]
    return "\n".join(lines) + "\n"


def _row(figure: Figure, path: str) -> str:
    value = figure.spread(path)
    row = f"| {path} | {_digits(value.median)} | {_digits(value.lower)} to {_digits(value.upper)} |"
    if not figure.reference:
        return row
    if path == figure.reference:
        return f"{row} | | |"
    ratio, goal = figure.ratio(path), figure.goals.get(path)
    met = "" if goal is None else f"{'at least' if figure.more_is_better else 'at most'} {goal:g}: "
    met += {True: "met", False: "missed", None: ""}[figure.met(path)]
    return f"{row} {ratio.median:.3f} | {ratio.lower:.3f} to {ratio.upper:.3f} | {met} |"


def _digits(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def plots(figures: Iterable[Figure], directory: Path) -> None:
    """Write a plot of each figure that compares something, and remove older ones."""
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    for figure in figures:
        if len(figure.rounds) > 1:
            (directory / f"{figure.name}.svg").write_text("".join(_svg(figure)))


def _svg(figure: Figure) -> Iterator[str]:
    """Yield a bar for each path up to its median, and a line from the lower to the upper quartile."""
    height = 30 + len(figure.rounds) * (BAR + GAP)
    longest = max(figure.spread(path).upper for path in figure.rounds) or 1.0
    scale = (WIDTH - LABEL - 90) / longest
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif"'
    yield ' font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n'
    yield f'<text x="4" y="18" font-weight="bold">{escape(figure.title)}, {escape(figure.unit)}</text>\n'
    for number, path in enumerate(figure.rounds):
        value, top = figure.spread(path), 30 + number * (BAR + GAP)
        colour = "#3465a4" if path.startswith("ooodd") or path == "a worker" else "#888a85"
        middle = top + BAR // 2
        yield f'<text x="{LABEL - 8}" y="{middle + 5}" text-anchor="end">{escape(path)}</text>\n'
        yield f'<rect x="{LABEL}" y="{top}" width="{value.median * scale:.1f}" height="{BAR}" fill="{colour}"/>\n'
        yield f'<line x1="{LABEL + value.lower * scale:.1f}" x2="{LABEL + value.upper * scale:.1f}" y1="{middle}"'
        yield f' y2="{middle}" stroke="black"/>\n'
        yield f'<text x="{LABEL + value.upper * scale + 6:.1f}" y="{middle + 5}">{_digits(value.median)}</text>\n'
    yield "</svg>\n"
