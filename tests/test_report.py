import base64
import hashlib
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from vae_anomaly.comparison import PairedDifference, Result
from vae_anomaly.metrics import Interval, evaluate
from vae_anomaly.report import (
    axes,
    formats,
    histogram,
    plot_precision_recall,
    plot_roc,
    plot_score_histogram,
    plot_training,
    render_comparison,
    render_report,
    to_svg,
    write_report,
)
from vae_anomaly.report.comparison import Compared

HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'&\x00\ud800"


def evaluation(n=600, *, share=0.1, seed=0, shift=2.0, threshold=1.6, **options):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(int)
    return evaluate(y, rng.normal(size=n) + shift * y, threshold, **options)


@pytest.fixture(scope="module")
def large():
    """As many rows as a report is promised to hold."""
    return evaluation(200_000, n_resamples=20)


def history(n_epochs=60):
    epoch = np.arange(1, n_epochs + 1)
    elbo = -20 - 1000 * np.exp(-epoch / 2)
    return {"epoch": epoch, "train_elbo": elbo, "val_elbo": elbo - 2, "train_kl": 5 - 4 / epoch}


def row(text="17", **changes):
    features = [(text, 2.5, text), ("flow", -0.5, "0.1"), ("level", float("nan"), "")]
    given = {"row": text, "anomaly_score": 12.5, "p_value": 0.001, "label": 0, "is_anomaly": 1, "features": features}
    return {**given, **changes}


def arguments(text="Pump 7"):
    return {
        "title": text,
        "model": {"score": "neg_elbo", text: text, "members": 4, "beta": 1.0, "hidden": [128, 128], "prior": None},
        "data": {"file": text, "rows": 600},
        "asked_fpr": 0.05,
        "history": history(),
        "worst_flagged": [row(text)],
        "worst_missed": [row(text, label=1, is_anomaly=0)],
        "provenance": {"command": text},
    }


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "input", "path", "use", "rect", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")


def test_equal_inputs_give_equal_bytes(tmp_path):
    pages = []
    for name in ("a.html", "b/c.html"):
        write_report(tmp_path / name, evaluation(), **arguments())
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert render_report(evaluation(), **arguments()).encode() == pages[0]
    assert sorted(path.name for path in tmp_path.rglob("*.html")) == ["a.html", "c.html"]


def test_report_stays_small_at_any_size(large):
    rows = [row("W" * 100_000, features=[("<" * 1000, 1.0, "&" * 1000)] * 1000)] * 1000
    assert len(render_report(large, **arguments()).encode()) < 300_000
    hostile = {**arguments("<" * 10_000), "worst_flagged": rows, "worst_missed": rows}
    assert len(render_report(large, **hostile).encode()) < 2_000_000


def test_foreign_text_stays_text():
    plain, hostile = (Page(render_report(evaluation(), **arguments(text))) for text in ("Pump 7", HOSTILE))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert not [attrs for _, attrs in hostile.elements if any(name.startswith("on") for name in attrs)]
    assert "<img src=x onerror=alert(1)>" in hostile.text


def test_page_asks_the_network_for_nothing():
    page = render_report(evaluation(), **arguments())
    assert set(re.findall(r"https?:[^\"'\s]*", page)) == {"http://www.w3.org/2000/svg"}
    for tag, attrs in Page(page).elements:
        assert tag not in ("link", "iframe", "object", "base", "form", "img")
        assert all(attrs.get(name, "#").startswith("#") for name in ("src", "href", "xlink:href"))
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}


def test_policy_allows_the_one_script():
    page = render_report(evaluation(), **arguments())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_verdict_gives_the_counts_and_sets_asked_beside_realised():
    given = evaluation(threshold=1.6)
    tn, fp, fn, tp = given.confusion
    text = Page(render_report(given, **arguments())).text
    assert f"{tp} of {tp + fn} anomalies are caught" in text
    assert f"{fp} of {tn + fp} normal rows raise a false alarm" in text
    assert f"ROC-AUC {given.roc_auc.value:.3f}" in text
    assert "A false-alarm rate of 5.0 % was asked for" in text
    assert "in line with what was asked" in text


@pytest.mark.parametrize(
    ("asked_fpr", "meaning"), [(0.001, "more than chance explains"), (0.3, "fewer than asked"), (None, "rate is")]
)
def test_verdict_judges_the_realised_rate(asked_fpr, meaning):
    assert meaning in Page(render_report(evaluation(), title="Pump 7", asked_fpr=asked_fpr)).text


def test_rows_name_their_result():
    rows = [row(), row(label=1), row(label=None), {"row": 3, "anomaly_score": np.float64(9.0)}]
    text = Page(render_report(evaluation(), title="Pump 7", worst_flagged=rows)).text
    assert text.count("false alarm\n") == text.count("caught\n") == 1
    assert text.count("flagged\n") == 2


@pytest.mark.parametrize("threshold", [-np.inf, np.inf, 1e9])
@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [1.0, 2.0, np.inf], [-1e300, 0.0, 1e300], [np.inf] * 3])
def test_odd_scores_and_thresholds_are_rendered(scores, threshold):
    page = render_report(evaluate([0, 0, 1], scores, threshold), title="")
    assert "nan" not in Page(page).text.lower()
    assert not re.search(r"[\" ,]-?(nan|inf)[\" ,]", page)


def test_ids_are_unique_and_every_reference_has_one():
    page = render_report(evaluation(), **arguments())
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) | set(re.findall(r' for="([^"]+)"', page))
    assert references <= set(ids)


@pytest.mark.parametrize("plot", [plot_roc, plot_precision_recall, plot_score_histogram])
def test_charts_are_small_svg_with_text_alternatives(plot, large):
    svg = to_svg(plot(large).figure, "A & B")
    root = ElementTree.fromstring(svg)
    assert len(svg) < 60_000
    assert (root.get("role"), root.get("aria-label")) == ("img", "A & B")
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "A & B"
    assert "var(--chart-ink" in svg
    # Text stays text, in the font of the page.
    assert root.findall(".//{http://www.w3.org/2000/svg}text")


@pytest.mark.parametrize("plot", [plot_roc, plot_precision_recall, plot_score_histogram])
def test_charts_draw_into_given_axes(plot):
    ax = Figure().add_subplot()
    assert plot(evaluation(), ax) is ax
    assert plot(evaluation(), ax=ax) is ax


@pytest.mark.parametrize(
    ("n", "share", "shift"), [(50, 0.3, 1), (200_000, 0.1, 0), (200_000, 0.1, 2), (200_000, 1e-3, 1)]
)
def test_thinning_keeps_the_areas(n, share, shift):
    given = evaluation(n, share=share, shift=shift, n_resamples=0)
    x, y = axes.thin(given.roc.fpr, given.roc.tpr)
    assert len(x) <= axes.MAX_POINTS
    assert np.trapezoid(y, x) == pytest.approx(given.roc_auc.value, abs=1e-3)
    x, y = axes.thin(*axes.steps(given.pr.recall[::-1], given.pr.precision[::-1]))
    assert len(x) <= axes.MAX_POINTS
    assert np.trapezoid(y, x) == pytest.approx(given.average_precision.value, abs=1e-3)


def test_thinning_keeps_the_tip_of_a_vertical_overshoot():
    # The distance to the line through (1, 2) and (1, 1) is zero, that to the segment is not.
    x, y = axes.thin(np.array([0.0, 1, 1, 1, 2]), np.array([2.0, 2, 0, 1, 1]))
    assert (1, 0) in zip(x, y, strict=True)


@pytest.mark.parametrize("n", [10, 5000])
def test_histogram_counts_every_row_once(n):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    scores = np.exp(3 * rng.normal(size=n))
    scores[1] = np.inf
    given = evaluate(y, scores, float(scores[4]), n_resamples=0)
    edges = histogram._score_edges(given, 40)
    assert np.all(np.diff(edges) > 0)
    below, counts, above = histogram._binned(scores, edges)
    assert below + counts.sum() + above == n
    # The threshold is an edge, so the bars to its right hold the flagged rows and no others.
    (at,) = np.flatnonzero(edges == given.threshold)
    assert counts[at:].sum() + above == np.sum(scores > given.threshold)


def test_training_chart_is_not_flattened_by_the_first_epochs():
    low, high = plot_training(history()).get_ylim()
    assert low > -60
    assert high > -20.5


def test_training_chart_without_validation_or_with_gaps():
    plot_training({"epoch": [1], "train_elbo": [-3.0]})
    plot_training({"epoch": [1, 2, 3], "val_elbo": [np.nan, -3.0, np.nan]})
    plot_training({"epoch": [1, 2], "val_elbo": [np.nan, np.nan]})
    with pytest.raises(ValueError, match="neither 'train_kl' nor 'val_kl'"):
        plot_training({"epoch": [1], "train_elbo": [-3.0]}, quantity="kl")
    with pytest.raises(ValueError, match=r"Unknown quantity 'loss'\. Choose from 'elbo'"):
        plot_training(history(), quantity="loss")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12.345678, "12.346"), (-3.5, "−3.5"), (1234567.8, "1,234,568"), (1e9, "1e+09"), (float("inf"), "∞")],
)
def test_numbers(number, text):
    assert formats.as_number(number) == text


def test_figures_are_not_rounded_to_certainty():
    assert [formats.as_figure(value) for value in (0.5, 0.9996, 1)] == ["0.500", "0.9996", "1.000"]
    assert [formats.as_percent(value) for value in (0, 0.0004, 0.05)] == ["0\xa0%", "0.04\xa0%", "5.0\xa0%"]


# Comparisons ---------------------------------------------------------------------------------------------------------


def compared(text="pump.csv"):
    area, wide = Interval(0.9, 0.85, 0.95, "bootstrap, 95 %"), Interval(0.5, None, None, "no interval")
    results = [Result(name, text, area, wide, 1.5, 0.001, np.zeros(3)) for name in ("vae", "knn", "lof")]
    differences = [
        PairedDifference("knn", Interval(0.02, 0.01, 0.03, ""), Interval(0.1, None, None, "")),
        PairedDifference("lof", Interval(-0.02, -0.03, -0.01, ""), Interval(-0.1, -0.2, 0.1, "")),
    ]
    return Compared(text, {text: text, "Rows": 1200}, results, differences, text)


def test_foreign_text_in_a_comparison_stays_text():
    pages = (
        render_comparison([compared(text)] * 2, title=text, provenance={"command": text}) for text in ("plain", HOSTILE)
    )
    plain, hostile = map(Page, pages)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert "onerror=alert(1)" in hostile.text
    assert not hostile.open


def test_a_comparison_needs_no_network_and_has_equal_bytes():
    page = render_comparison([compared()], title="Pump 7")
    assert page == render_comparison([compared()], title="Pump 7")
    policy = next(a["content"] for t, a in Page(page).elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert not [a for _, a in Page(page).elements if "src" in a or a.get("href", "#")[0] != "#"]


def test_clear_differences_are_marked():
    page = render_comparison([compared()], title="Pump 7")
    assert re.findall(r'<span class="(\w*)">([+−.\d]+)</span>', page) == [
        ("better", "+0.020"), ("", "+0.100"), ("worse", "−0.020"), ("", "−0.100"),
    ]  # fmt: skip
