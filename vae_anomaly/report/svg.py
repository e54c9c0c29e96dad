"""Figures as SVG elements to paste into a web page."""

import html
import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

from vae_anomaly.report.axes import ANOMALY, GRID, INK, MUTED, NORMAL

__all__ = ["to_svg"]

# The page gives these custom properties other values on a dark background.
CSS_COLOURS = {INK: "ink", MUTED: "muted", GRID: "grid", NORMAL: "normal", ANOMALY: "anomaly"}


def to_svg(figure: Figure, title: str | None = None, *, frame: bool = False) -> str:
    """SVG element to paste into a web page: equal figures give equal text.

    Text stays text, and colours of this module are custom properties of CSS (``--chart-ink``, ``--chart-muted``,
    ``--chart-grid``, ``--chart-normal``, ``--chart-anomaly``) that fall back to the printed ones.

    Parameters
    ----------
    figure : matplotlib Figure
        What to write.
    title : str, optional
        What a screen reader says; the labels of the axes when left out.
    frame : bool
        Whether to add an attribute ``data-frame`` that tells a script where the first axes lie: limits of x and
        where they are drawn, then those of y. The script can use linear scales only.

    Returns
    -------
    str

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> from vae_anomaly.report.charts import plot_roc
    >>> svg = to_svg(plot_roc(evaluate([0, 1], [0.1, 0.8], threshold=0.5)).figure, "ROC curve")
    >>> svg[:4], svg[-6:], 'role="img" aria-label="ROC curve"' in svg
    ('<svg', '</svg>', True)
    """
    if title is None:
        title = "; ".join(f"{ax.get_ylabel()} against {ax.get_xlabel()}" for ax in figure.axes)
    text = io.StringIO()
    # The salt makes the ids of clip paths and markers, which must differ between the charts of one page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"vae_anomaly {title}"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), title, f' data-frame="{_frame(figure)}"' if frame else "")


def _frame(figure: Figure) -> list[float]:
    """Limits of the first axes, and the coordinates of the SVG element at which they are drawn."""
    ax = figure.axes[0]
    box, (width, height) = ax.get_position(), 72 * figure.get_size_inches()
    numbers = [
        *(*ax.get_xlim(), width * box.x0, width * box.x1),
        *(*ax.get_ylim(), height * (1 - box.y0), height * (1 - box.y1)),
    ]
    return [float(number) for number in numbers]


def _inline(svg: str, title: str, attributes: str = "") -> str:
    """SVG text without what a page has no use for, with a text alternative and colours that follow the page."""
    svg = re.sub(r"^.*?(?=<svg\b)|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    # A hundredth of a point is finer than any screen. Coordinates only: text holds numbers too.
    svg = re.sub(
        r'(?<= )(?:d|x|y|transform|viewBox)="[^"]*"',
        lambda attribute: re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), attribute[0]),
        svg,
    )
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for colour, name in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var(--chart-{name}, {colour})")
    svg = re.sub(r"\s*\n\s*", "\n", svg).strip()
    text = html.escape(title)
    # Without width and height the page's style sheet sets the size; the proportions are those of viewBox.
    opening = re.match(r"<svg\b[^>]*>", svg)
    assert opening is not None
    start = re.sub(r' (?:width|height|version)="[^"]*"', "", opening[0])
    return f'{start[:-1]}{attributes} role="img" aria-label="{text}">\n<title>{text}</title>{svg[opening.end() :]}'
