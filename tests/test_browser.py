"""Reports in a real browser: what the slider says, what hostile names become, and that nothing is asked for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix
from tables import TINY_OPTIONS, labelled, mixed, run

from vae_anomaly.by_type import recall_by_type
from vae_anomaly.metrics import evaluate
from vae_anomaly.report import latent_map, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202eevil\u202c \u200f\u200e",
    "{{ 7 * 7 }} {% raw %}",
    "x" * 10_000,
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """An open page, and everything that it did unasked."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(**options)
        self.console, self.requests, self.dialogs = [], [], []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.url = Path(path).resolve().as_uri()
        self.page.goto(self.url)

    def text(self, selector):
        return self.page.inner_text(selector).replace("\u00a0", " ")

    def number(self, selector):
        return float(self.text(selector).rstrip(" %").replace(",", ""))

    def did_nothing_unasked(self):
        # Pictures inside the file are data, not requests.
        asked = [url for url in self.requests if not url.startswith("data:")]
        return asked == [self.url] and not self.console and not self.dialogs


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    y = (rng.random(900) < 0.15).astype(int)
    return evaluate(y, rng.normal(size=900) + 2 * y, 1.6, n_resamples=50)


@pytest.fixture(scope="module")
def report(given, tmp_path_factory):
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("browser") / "report.html"
    kinds = np.where(given.y == 1, rng.choice(["leak", "jam", "burst"], given.n_rows), "")
    rows = [
        {"row": n, "anomaly_score": float(score), "p_value": 0.01, "label": 1, "is_anomaly": 1}
        for n, score in enumerate(rng.permutation(12))
    ]
    latent = latent_map(rng.normal(size=(2000, 3)), rng.normal(size=(given.n_rows, 3)), y=given.y)
    write_report(
        path, given, title="Pump 7", asked_fpr=0.05, promise=(0.03, 0.07), types=recall_by_type(given, kinds),
        worst_flagged=rows, latent=latent, p_values=rng.random(given.n_rows),
    )  # fmt: skip
    return path


@pytest.fixture
def visit(chromium, report):
    visit = Visit(chromium, report)
    yield visit
    assert visit.did_nothing_unasked()
    visit.page.close()


def agrees_with_scikit_learn(visit, given):
    threshold = float(visit.page.get_attribute("#shown-threshold", "data-value"))
    tn, fp, fn, tp = confusion_matrix(given.y, given.scores > threshold, labels=[0, 1]).ravel()
    assert [visit.number(f"#count-{key}") for key in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
    assert visit.number("#live-recall") == pytest.approx(100 * tp / (tp + fn), abs=0.051)
    assert visit.number("#live-fpr") == pytest.approx(100 * fp / (fp + tn), abs=0.051)
    if tp + fp:
        assert visit.number("#live-precision") == pytest.approx(100 * tp / (tp + fp), abs=0.051)
    else:
        assert visit.text("#live-precision") == "–"
    assert visit.number("#live-cost") == pytest.approx(1000 * (fn + fp) / given.n_rows, rel=1e-3)


def test_the_slider_starts_at_the_threshold(visit, given):
    assert float(visit.page.get_attribute("#shown-threshold", "data-value")) == given.threshold
    agrees_with_scikit_learn(visit, given)


@pytest.mark.parametrize(
    ("key", "times"), [("ArrowLeft", 7), ("ArrowRight", 40), ("PageDown", 1), ("Home", 1), ("End", 1)]
)
def test_the_slider_moves_by_keyboard(visit, given, key, times):
    visit.page.focus("#threshold")
    before = visit.page.get_attribute("#shown-threshold", "data-value")
    for _ in range(times):
        visit.page.keyboard.press(key)
    assert visit.page.get_attribute("#shown-threshold", "data-value") != before
    agrees_with_scikit_learn(visit, given)
    assert "recall" in visit.page.get_attribute("#threshold", "aria-valuetext")


def test_the_mark_lies_on_both_curves(visit):
    visit.page.focus("#threshold")
    for _ in range(60):
        visit.page.keyboard.press("ArrowLeft")
    for chart, (x, y) in {
        "roc": ("#live-fpr", "#live-recall"),
        "precision_recall": ("#live-recall", "#live-precision"),
    }.items():
        x0, x1, left, right, y0, y1, bottom, top = json.loads(
            visit.page.get_attribute(f"#chart-{chart} svg", "data-frame")
        )
        at = [float(visit.page.get_attribute(f"#chart-{chart} .moved", name)) for name in ("cx", "cy")]
        shown = x0 + (at[0] - left) / (right - left) * (x1 - x0), y0 + (at[1] - bottom) / (top - bottom) * (y1 - y0)
        assert shown == pytest.approx((visit.number(x) / 100, visit.number(y) / 100), abs=6e-4)
        # The frame is where matplotlib drew the axes: the mark of the model's threshold lies where it says.
        assert 0 < left < at[0] < right
        assert 0 < top < at[1] < bottom


def test_the_cheapest_threshold_is_the_cheapest(visit, given):
    visit.page.fill("#cost-miss", "7")
    visit.page.fill("#cost-alarm", "2")
    visit.page.click("#cheapest")
    costs = [
        7 * ((given.scores <= t) & (given.y == 1)).sum() + 2 * ((given.scores > t) & (given.y == 0)).sum()
        for t in np.unique(given.scores)
    ]
    # Of 900 scores, 400 are tried.
    assert visit.number("#live-cost") == pytest.approx(1000 * min(costs) / given.n_rows, rel=0.02)
    visit.page.click("#back")
    assert float(visit.page.get_attribute("#shown-threshold", "data-value")) == given.threshold


def test_tables_sort_by_click_and_by_keyboard(visit):
    def column():
        cells = visit.page.query_selector_all("table.rows tbody td:nth-child(2)")
        return [float(cell.inner_text()) for cell in cells]

    assert column() != sorted(column(), reverse=True)
    visit.page.click("table.rows th:nth-child(2) button")
    assert column() == sorted(column(), reverse=True)
    visit.page.focus("table.rows th:nth-child(2) button")
    visit.page.keyboard.press("Enter")
    assert column() == sorted(column())
    assert visit.page.get_attribute("table.rows th:nth-child(2)", "aria-sort") == "ascending"


def test_every_chart_has_a_text_alternative(visit):
    charts = visit.page.query_selector_all("figure svg")
    assert len(charts) >= 6
    assert all(chart.get_attribute("role") == "img" and chart.get_attribute("aria-label") for chart in charts)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_the_dark(chromium, report, width, scheme):
    visit = Visit(chromium, report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    page, ink = visit.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map((text) => text.match(/\\d+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0) / 3)"
    )
    assert (page > ink) == (scheme == "light")
    assert abs(page - ink) > 120
    assert visit.did_nothing_unasked()


def test_print_leaves_the_controls_out(visit):
    visit.page.emulate_media(media="print")
    assert not visit.page.is_visible("#threshold")
    assert visit.page.is_visible(".confusion")


def test_without_a_script_the_page_is_complete(chromium, report, given):
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert not page.is_visible("#threshold")
    assert page.inner_text("#count-tp") == str(given.confusion.tp)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Report on a table whose columns, categories, labels, kinds and files are named to do harm."""
    folder = tmp_path_factory.mktemp("hostile")
    names = dict(zip(["flow", "pressure", "count", "mode", "on"], HOSTILE, strict=True))
    modes = dict(zip(["idle", "run", "wash"], HOSTILE, strict=False))
    train, test = (frame.assign(mode=frame["mode"].map(modes)).rename(columns=names) for frame in (mixed(), labelled()))
    kinds = pd.Series(np.resize(HOSTILE, len(test)))
    test["kind"] = kinds.where(test["anomaly"] == 1, "fine")
    test["anomaly"] = test["anomaly"].map({0: "<b>fine</b>", 1: "<i>not</i>"})
    files = folder / "<img src=x onerror=alert(2)>.csv", folder / "'\"><svg onload=alert(3)>.csv"
    for frame, path in zip((train, test), files, strict=True):
        frame.to_csv(path, index=False)
    run("fit", files[0], "-o", folder / "<u>.safetensors", *TINY_OPTIONS)
    run(
        "report", folder / "<u>.safetensors", files[1], "--label", "anomaly", "--normal-value", "<b>fine</b>", "--type",
        "kind", "--title", HOSTILE[1], "-o", folder / "out",
    )  # fmt: skip
    return folder / "out" / "report.html"


def test_hostile_names_appear_as_text(chromium, hostile):
    visit = Visit(chromium, hostile)
    # A second look, after what would run late.
    visit.page.wait_for_timeout(300)
    assert visit.did_nothing_unasked()
    assert visit.page.query_selector("img, u, i, iframe, object, embed") is None
    assert visit.page.evaluate("document.scripts.length") == 2
    text = visit.page.evaluate("document.body.textContent")
    for name in HOSTILE[:2]:
        assert name in text
    assert "<img src=x onerror=alert(2)>.csv" in text
    assert "{{ 7 * 7 }}" in text
    assert "x" * 200 not in text


def test_hostile_names_do_not_break_the_page(chromium, hostile):
    visit = Visit(chromium, hostile, viewport={"width": 400, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert hostile.stat().st_size < 2_000_000
    # Marks that turn the direction of text are confined to the cell they stand in.
    cells = visit.page.eval_on_selector_all("td, th", "all => all.map((cell) => getComputedStyle(cell).unicodeBidi)")
    assert set(cells) == {"isolate"}
