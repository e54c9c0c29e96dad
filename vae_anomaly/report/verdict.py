"""What a reader in a hurry should know: sentences, and the figures of merit."""

from vae_anomaly.metrics import Evaluation, Interval, Unlabelled
from vae_anomaly.report.contents import Contents
from vae_anomaly.report.formats import as_figure, as_number, as_percent, confidence_of, range_of

__all__ = ["cards", "pixel_cards", "verdict"]


def verdict(contents: Contents) -> list[str]:
    """Three sentences."""
    given = contents.evaluation
    if isinstance(given, Unlabelled):
        return _unlabelled_verdict(given, contents)
    auc = given.roc_auc
    tn, fp, fn, tp = given.confusion
    interval = (
        "" if auc.low is None else f", {confidence_of(auc)} interval {as_figure(auc.low)} to {as_figure(auc.high)}"
    )
    return [
        f"An anomaly scores higher than a normal row in {as_percent(auc.value)} of all pairs"
        f" (ROC-AUC {as_figure(auc.value)}{interval}).",
        f"At the threshold, {tp:,} of {tp + fn:,} anomalies are caught ({as_percent(given.recall.value)}), and"
        f" {fp:,} of {tn + fp:,} normal rows raise a false alarm.",
        _promise_sentence(given.false_alarm_rate, contents.asked_fpr),
    ]


def _promise_sentence(alarms: Interval, asked_fpr: float | None) -> str:
    assert alarms.low is not None
    assert alarms.high is not None
    realised = f"{as_percent(alarms.value)} ({confidence_of(alarms)} interval {range_of(alarms)})"
    if asked_fpr is None:
        return f"The false-alarm rate is {realised}."
    if asked_fpr < alarms.low:
        meaning = "more than chance explains: these normal rows may differ from those the threshold was made on"
    elif asked_fpr > alarms.high:
        meaning = "fewer than asked"
    else:
        meaning = "in line with what was asked"
    return f"A false-alarm rate of {as_percent(asked_fpr)} was asked for and {realised} came out: {meaning}."


def _unlabelled_verdict(given: Unlabelled, contents: Contents) -> list[str]:
    n, flagged = given.n_rows, given.n_flagged
    sentences = [f"{flagged:,} of {n:,} rows are flagged ({as_percent(flagged / n)})."]
    asked = contents.asked_fpr
    if asked is not None:
        expected = asked * n
        sentences.append(
            f"Were all rows normal, about {as_number(expected, digits=3)} would be ({as_percent(asked)}): "
            + (
                "so most of the flagged rows are likely to be anomalies."
                if flagged > 2 * expected
                else "so there is no more here than false alarms explain."
                if flagged <= expected
                else "there is a little more here than false alarms explain."
            )
        )
    sentences.append("There are no labels, so nothing is known of the anomalies that were missed.")
    return sentences


def cards(contents: Contents) -> list[dict[str, str]]:
    """The figures of merit, each with its interval or what to compare it with."""
    given = contents.evaluation
    listed = _unlabelled_cards(given) if isinstance(given, Unlabelled) else _labelled_cards(given, contents.asked_fpr)
    return [{"name": name, "value": value, "hint": hint} for name, value, hint in listed]


def _unlabelled_cards(given: Unlabelled) -> list[tuple[str, str, str]]:
    share = given.n_flagged / given.n_rows
    return [
        ("Rows", f"{given.n_rows:,}", "with a score"),
        ("Flagged", f"{given.n_flagged:,}", as_percent(share)),
        ("Threshold", as_number(given.threshold), "rows with a higher score are flagged"),
    ]


def _labelled_cards(of: Evaluation, asked_fpr: float | None) -> list[tuple[str, str, str]]:
    def within(figure: Interval, ends: str) -> str:
        return "" if figure.low is None else f"{confidence_of(figure)} interval {ends}"

    def areas(figure: Interval, *also: str) -> str:
        ends = within(figure, f"{as_figure(figure.low)}–\u2060{as_figure(figure.high)}")
        return "; ".join(text for text in (ends, *also) if text)

    def shares(figure: Interval, *also: str) -> str:
        return "; ".join([within(figure, range_of(figure)) or figure.method, *also])

    asked = [] if asked_fpr is None else [f"asked {as_percent(asked_fpr)}"]
    partial = f"up to {as_percent(of.max_fpr)} false alarms: {as_figure(of.partial_roc_auc.value)}"
    chance = f"by chance {as_figure(of.prevalence)}"
    return [
        ("ROC-AUC", as_figure(of.roc_auc.value), areas(of.roc_auc, "by chance 0.5", partial)),
        ("Average precision", as_figure(of.average_precision.value), areas(of.average_precision, chance)),
        ("False-alarm rate", as_percent(of.false_alarm_rate.value), shares(of.false_alarm_rate, *asked)),
        ("Recall: anomalies caught", as_percent(of.recall.value), shares(of.recall)),
        ("Precision: alarms that are right", as_percent(of.precision.value), shares(of.precision)),
        ("F1", as_figure(of.f1), f"at threshold {as_number(of.threshold)}"),
    ]


def pixel_cards(contents: Contents) -> list[dict[str, str]]:
    """The figures of the maps, where masks are there."""
    found = contents.localised
    if found is None:
        return []
    listed = [
        ("Pixel ROC-AUC", as_figure(found.roc_auc), "by chance 0.5; of all pixels together"),
        ("AUPRO", as_figure(found.aupro), f"up to {as_percent(found.max_fpr)} false-positive pixels"),
        ("Defects", f"{found.n_regions:,}", f"connected regions in {found.n_images:,} images"),
    ]
    return [{"name": name, "value": value, "hint": hint} for name, value, hint in listed]
