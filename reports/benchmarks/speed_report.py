"""The runs of speed.py as a Markdown page and a plot."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

Line = dict[str, Any]
COMMAND = "python reports/benchmarks/speed.py --device {} --data FOLDER --mnist FOLDER --pyod-python PATH"
DEVICES = {"cpu": "Processor", "cuda": "GPU"}


def write_report(lines: Sequence[Line], runs: Path) -> None:
    """Beside the runs: a page with a part for each device, and a plot of how times grow."""
    page = ["# Speed", "", *INTRODUCTION]
    for device, heading in DEVICES.items():
        own = [line for line in lines if line["device"].partition(":")[0] == device]
        if not own:
            page += ["", f"## {heading}", "", f"Not measured. `{COMMAND.format(device)}` measures it."]
        for processor in dict.fromkeys(line["processor"] for line in own):
            page += ["", f"## {heading}: {processor}", "", *part([ln for ln in own if ln["processor"] == processor])]
        page += missing(own, lines) if own else []
    if any(line["section"] == "growth" for line in lines):
        page += ["", f"![Fit and score by rows, columns and members]({runs.stem}.png)"]
        plot(lines).savefig(runs.with_suffix(".png"), dpi=110)
    runs.with_suffix(".md").write_text("\n".join(page) + "\n", encoding="utf-8")


INTRODUCTION = [
    "Made by `speed.py`, whose top says how. Each figure is a median of runs of both sides in turn, with the same",
    "number of threads. Ratios above 1 say that we are faster; beside the bare network, by how much we are slower.",
]


def part(lines: Sequence[Line]) -> list[str]:
    """The page of one device."""
    newest = lines[-1]
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    threads = sorted({line["machine"]["threads"] for line in lines})
    page = [f"{' or '.join(map(str, threads))} threads; {versions}.", ""]
    once = _run_once(lines)
    if once:
        page += [f"Run once, by each side: {', '.join(once)}.", ""]
    for section, (title, columns) in TABLES.items():
        own = [line for line in lines if line["section"] == section]
        if not own:
            continue
        page += [f"### {title}", "", _row([name for name, _, _ in columns]), _row(["---"] * len(columns))]
        page += [_row([_shown(line.get(key), style) for _, key, style in columns]) for line in own]
        page += [*_overall(section, own), ""]
    return page[:-1] + _profiles([line for line in lines if line["section"] == "limit"])


def _run_once(lines: Sequence[Line]) -> list[str]:
    """Sections, or the cases of them, that are no median of several runs."""
    found = []
    for section in dict.fromkeys(line["section"] for line in lines):
        own = [line for line in lines if line["section"] == section]
        single = [line["name"] for line in own if line.get("pairs") == 1]
        if single:
            found.append(section if len(single) == len(own) else f"{section} ({'; '.join(single)})")
    return found


def missing(own: Sequence[Line], lines: Sequence[Line]) -> list[str]:
    """What was measured on another device alone."""
    known = {(line["section"], line["name"]) for line in own}
    # Not every processor has the instructions for that.
    names = dict.fromkeys((ln["section"], ln["name"]) for ln in lines if ln.get("precision") != "bfloat16")
    left = [f"{section} ({name})" for section, name in names if (section, name) not in known]
    if not left:
        return []
    command = COMMAND.format(own[0]["device"])
    return ["", f"Not measured: {'; '.join(left)}. `{command}` measures what is missing."]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: Any, style: str) -> str:
    return "" if value is None else format(value, style)


def _overall(section: str, lines: Sequence[Line]) -> list[str]:
    if section != "pyod":
        return []
    versions = sorted({line["pyod"] for line in lines})
    ours, theirs = (100 * fmean(line[f"{side}_auroc"] for line in lines) for side in ("ours", "theirs"))
    visits = median(line["ours_visits"] / line["theirs_visits"] for line in lines)
    rows = median(line["ours_rows"] / line["theirs_rows"] for line in lines)
    return [
        "",
        f"PyOD {', '.join(versions)}. Mean ROC-AUC {ours:.1f} against {theirs:.1f}. Median over the sets: {visits:.1f} "
        f"times the rows x epochs x members a second in fit, {rows:.1f} times the rows a second in score.",
    ]


def _profiles(lines: Sequence[Line]) -> list[str]:
    """What torch's profiler says the time goes to."""
    page = []
    for line in lines:
        listed = ", ".join(f"`{name}` {100 * share:.0f} %" for name, share in line["profile"])
        page += ["", f"Where the time of {line['name']} goes (operations' own time): {listed}."]
    return page


TABLES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "textbook": (
        "Fit against the textbook loop (784-400-200-20, Bernoulli, batches of 128)",
        [
            ("images", "data", ""),
            ("learned from", "images", ","),
            ("our epochs", "epochs", ""),
            ("the loop's", "theirs_epochs", ""),
            ("the loop reads", "theirs_read", ""),
            ("precision", "precision", ""),
            ("ours, s", "ours_seconds", ".2f"),
            ("loop, s", "theirs_seconds", ".2f"),
            ("times faster", "ratio", ".1f"),
            ("products alone, s", "products_seconds", ".2f"),
            ("our held-out ELBO, nats", "ours_elbo", ".1f"),
            ("the loop's", "theirs_elbo", ".1f"),
        ],
    ),
    "pyod": (
        "Fit and score against PyOD's VAE (one network; ours are six)",
        [
            ("set", "name", ""),
            ("rows", "n_train", ","),
            ("columns", "d", ""),
            ("our fit, s", "ours_seconds", ".2f"),
            ("PyOD's, s", "theirs_seconds", ".2f"),
            ("times faster", "ratio", ".2f"),
            ("our ROC-AUC", "ours_auroc", ".3f"),
            ("PyOD's", "theirs_auroc", ".3f"),
            ("our rows x epochs x members / s", "ours_visits", ",.0f"),
            ("PyOD's", "theirs_visits", ",.0f"),
            ("rows scored / s", "ours_rows", ",.0f"),
            ("by PyOD's kind of score", "ours_alike_rows", ",.0f"),
            ("PyOD's", "theirs_rows", ",.0f"),
        ],
    ),
    "bare": (
        "Score against the bare network (the same sums by hand on encoded rows)",
        [
            ("score", "name", ""),
            ("rows", "rows", ","),
            ("ours, s", "ours_seconds", ".3f"),
            ("by hand, s", "theirs_seconds", ".3f"),
            ("times as long", "ratio", ".2f"),
            ("rows / s", "ours_rows", ",.0f"),
        ],
    ),
    "single row": (
        "One row",
        [
            ("table", "name", ""),
            ("median, ms", "milliseconds", ".2f"),
            ("slowest twentieth, ms", "slow_milliseconds", ".2f"),
        ],
    ),
    "growth": (
        "Growth",
        [
            ("", "name", ""),
            ("rows", "rows", ","),
            ("columns", "columns", ","),
            ("members", "members", ""),
            ("fit, s", "fit_seconds", ".1f"),
            ("rows scored / s", "score_rows_per_second", ",.0f"),
            ("steps", "steps", ","),
            ("batch", "batch", ","),
            ("passes", "passes", ".1f"),
        ],
    ),
    "limit": (
        "The limit",
        [
            ("", "name", ""),
            ("s", "seconds", ".2f"),
            ("GFLOP/s", "gflops", ".1f"),
            ("2048-square product", "large_product_gflops", ".1f"),
            ("product of our shapes", "like_product_gflops", ".1f"),
            ("share of the first", "share_of_large", ".0%"),
            ("of the second", "share_of_like", ".0%"),
        ],
    ),
    "quality": (
        "Quality (seed 0; Spearman of scores in float32 and under bfloat16 autocast, which is not used)",
        [
            ("set", "name", ""),
            ("ROC-AUC", "ours_auroc", ".4f"),
            ("on record", "recorded_auroc", ".4f"),
            ("Spearman, novelty", "spearman_novelty", ".4f"),
            ("Spearman, neg_log_px_z", "spearman_neg_log_px_z", ".4f"),
            ("ROC-AUC, bfloat16", "bfloat16_auroc", ".4f"),
        ],
    ),
}


def plot(lines: Sequence[Line]) -> Figure:
    """Seconds of a fit and rows scored a second, by rows, columns and members."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    for column, what in enumerate(("rows", "columns", "members")):
        grown = [line for line in lines if line["section"] == "growth" and line["name"].endswith(what)]
        for processor in dict.fromkeys(line["processor"] for line in grown):
            own = [line for line in grown if line["processor"] == processor]
            own.sort(key=lambda line: line[what])
            for row, (key, label) in enumerate(
                (("fit_seconds", "fit, s"), ("score_rows_per_second", "rows scored / s"))
            ):
                ax = axes[row, column]
                ax.loglog([line[what] for line in own], [line[key] for line in own], "o-", label=processor)
                ax.grid(alpha=0.3)
                if column == 0:
                    ax.set_ylabel(label)
        axes[1, column].set_xlabel(what)
    axes[0, 0].legend()
    return figure
