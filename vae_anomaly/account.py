"""What a detector has to show on a table of rows: the contents of a report."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import vae_anomaly
from vae_anomaly.by_type import TypeRecall, recall_by_type
from vae_anomaly.data import Data
from vae_anomaly.errors import DataError, look_up
from vae_anomaly.heat_maps import anomaly_maps, colour_scale
from vae_anomaly.localisation import localisation
from vae_anomaly.metrics import MAX_FPR, Evaluation, Unlabelled, evaluate
from vae_anomaly.paired import Compared, compare_scores
from vae_anomaly.planning import check_score
from vae_anomaly.predictions import align, as_fitted, by_parts, predict_table, top_features
from vae_anomaly.report.contents import Contents
from vae_anomaly.report.diagnostics import LatentMap, latent_map
from vae_anomaly.report.pictures import MAX_PICTURES, Grid, Pictures
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import realised_rate
from vae_anomaly.traversal import traverse

if TYPE_CHECKING:
    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector

__all__ = ["Account", "account"]

N_WORST = 20
N_TOP = 3
N_SAMPLES = 5
# The latent map shows no more dots than this, so no more rows need a code.
MAX_LATENT_ROWS = 3000
# Each score is one more pass over the rows; of more rows than these, an even choice is compared.
MAX_COMPARED_ROWS = 20_000
# Numbers that a score may decode for each image to be compared unasked, all draws together. Images of 64 x 64 pixels
# take 65,536, the features of 128 x 128 pixels 868,352, and 50 ms for each score (six members, two cores).
MAX_DRAWN_ENTRIES = 100_000

Floats = NDArray[np.float64]


class Account(NamedTuple):
    """The contents of a report, and how many rows had no place in it."""

    contents: Contents
    n_left_out: int
    """Rows without a score, and where there are labels, rows without one."""


class Scored(NamedTuple):
    """The rows that count, what became of them, and their scores by other detectors."""

    rows: "Data | Images"
    predictions: pd.DataFrame
    others: dict[str, Floats]


def account(
    detector: "VAEDetector",
    data: "Data | Images",
    *,
    title: str,
    model_name: str = "model",
    others: "Mapping[str, VAEDetector] | None" = None,
    types: str | None = None,
    compare: bool = True,
    also: Sequence[str] = (),
    max_fpr: float = MAX_FPR,
    cost_miss: float | None = None,
    cost_alarm: float | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Account:
    """Contents of the report of a detector on some rows, labelled or not.

    Parameters
    ----------
    detector : VAEDetector
        Fitted.
    data : Data
        Rows to evaluate on; ``data.y`` is None without labels.
    title : str
        Heading of the report.
    model_name : str
        What to call the detector.
    others : mapping of str to VAEDetector, optional
        Detectors to compare with on the same rows.
    types : str, optional
        Column of ``data.kept`` with the kind of each anomaly.
    compare : bool
        Whether to compare the scores of the detector: all but those that take long, which are named.
    also : sequence of str
        Scores to compare whatever they take.
    max_fpr : float
        As of :func:`vae_anomaly.metrics.evaluate`.
    cost_miss, cost_alarm : float, optional
        What a missed anomaly and a false alarm cost; by default what the threshold was chosen for, or 1.
    provenance : mapping of str to object, optional

    Raises
    ------
    DataError
        If no row can be scored, or all labels are of one class.
    ValueError
        If the detector has no such score as is to be compared.
    """
    for name in also:
        look_up("score", name, SCORES)
        check_score(name, detector.schema_)
    scored = _score(detector, data, others or {})
    chosen_for = detector.threshold_rule_["parameters"]
    evaluation = _evaluate(detector, scored, max_fpr)
    predictions = scored.predictions
    names = list(dict.fromkeys([*(_cheap_scores(detector) if compare else ()), *also]))
    missed = predictions[(predictions["is_anomaly"] == 0) & (scored.rows.y == 1)]
    localised = None if isinstance(scored.rows, Data) else localisation(detector, scored.rows)
    contents = Contents(
        evaluation,
        title=title,
        model=_model_facts(detector, model_name),
        data=_data_facts(detector, data, evaluation),
        provenance={**(provenance or {}), **_versions(), "Seed": str(detector.seed_)},
        asked_fpr=detector.threshold_rule_["fpr"],
        promise=_promise(detector),
        seen_rows=(seen := _seen(detector, scored)),
        cautions=_cautions(detector.threshold_rule_, seen, len(scored.rows)),
        p_values=predictions["p_value"].to_numpy(dtype=float),
        history=_mean_history(detector),
        latent=_latent(detector, scored),
        worst_flagged=_worst(detector, scored, predictions[_flagged(predictions)].nlargest(N_WORST, "anomaly_score")),
        worst_missed=_worst(detector, scored, missed.nsmallest(N_WORST, "anomaly_score")),
        types=_types(evaluation, scored.rows, types),
        compared=(compared := _compared(detector, scored, model_name, names)),
        compared_notes=_not_compared(detector, names) if compare and compared and not scored.others else (),
        samples=_samples(detector, scored),
        pictures=_pictures(detector, scored),
        traversal=_traversal(detector),
        localised=localised.evaluation if localised else None,
        localised_notes=localised.notes if localised else (),
        cost_miss=chosen_for.get("cost_miss", 1.0) if cost_miss is None else cost_miss,
        cost_alarm=chosen_for.get("cost_alarm", 1.0) if cost_alarm is None else cost_alarm,
    )
    return Account(contents, len(data) - len(scored.rows))


def _score(detector: "VAEDetector", data: "Data | Images", others: "Mapping[str, VAEDetector]") -> Scored:
    predictions, _ = predict_table(detector, data, n_top=0)
    scores = {
        name: predict_table(other, data, n_top=0)[0]["anomaly_score"].to_numpy(dtype=float)
        for name, other in others.items()
    }
    usable = np.array(predictions["anomaly_score"].notna())
    for values in scores.values():
        usable &= ~np.isnan(values)
    if data.y is not None:
        usable &= data.y >= 0
    if not usable.any():
        what = "row that can be scored" if data.y is None else "row with a label that can be scored"
        raise DataError(f"{data.name} has no {what}.")
    return Scored(
        data.take(usable),
        predictions[usable].reset_index(drop=True),
        {name: values[usable] for name, values in scores.items()},
    )


def _evaluate(detector: "VAEDetector", scored: Scored, max_fpr: float) -> Evaluation | Unlabelled:
    scores = scored.predictions["anomaly_score"].to_numpy(dtype=float)
    if scored.rows.y is None:
        return Unlabelled(scores, detector.threshold_, _flagged(scored.predictions))
    try:
        return evaluate(
            scored.rows.y,
            scores,
            detector.threshold_,
            max_fpr=max_fpr,
            is_anomaly=_flagged(scored.predictions) if detector.group_thresholds_ else None,
        )
    except DataError as error:
        raise DataError(f"{scored.rows.name}: {error} Without --label, a report shows what needs no labels.") from None


def _flagged(predictions: pd.DataFrame) -> NDArray[np.bool_]:
    flagged: NDArray[np.bool_] = (predictions["is_anomaly"] == 1).to_numpy(dtype=bool)
    return flagged


def _cautions(rule: dict[str, Any], seen: Mapping[str, int], n: int) -> list[str]:
    """Why figures on these ``n`` rows are no test result, and what kind of threshold they belong to."""
    cautions = []
    if seen["training"]:
        cautions.append(
            f"Not a test result: {seen['training']:,} of {n:,} rows are equal to rows that the model was trained on."
        )
    elif seen["calibration"]:
        cautions.append(
            f"Not a test result: {seen['calibration']:,} of {n:,} rows are equal to rows that set the threshold."
        )
    if seen["labels"]:
        cautions.append(
            f"Not a test result: the threshold ({rule['name']}) was chosen on these labels; {seen['labels']:,} of "
            f"{n:,} rows are equal to rows that it was chosen on."
        )
    if rule.get("extrapolation"):
        cautions.append(
            "The threshold is an extrapolation beyond the calibration rows (peaks over threshold), not a promise."
        )
    return cautions


def _promise(detector: "VAEDetector") -> tuple[float, float] | None:
    """Interval of the true false-alarm rate, where the rule of the threshold has a law for it."""
    rule = detector.threshold_rule_
    if rule["name"] != "conformal" or not np.isfinite(detector.threshold_) or detector.group_thresholds_:
        return None
    return realised_rate(len(detector.calibration_scores_), rule["fpr"])


def _model_facts(detector: "VAEDetector", model_name: str) -> dict[str, object]:
    rule = detector.threshold_rule_
    return {
        "File": model_name,
        "Score": detector.score_name_,
        "Likelihood": detector.fitted_params_["likelihood"],
        "Prior": detector.fitted_params_["prior"],
        "Members": detector.ensemble_.n_estimators,
        "Latent variables": detector.architecture_["latent_dim"],
        "Active units, by member": ", ".join(str(int(count)) for count in detector.active_units_),
        "Rows trained on": detector.n_rows_["train"],
        "Calibration rows": len(detector.calibration_scores_),
        "Threshold": detector.threshold_,
        "Threshold rule": rule["name"] + (", out of fold" if rule["out_of_fold"] else ""),
        **_rule_facts(rule),
        **_group_facts(detector),
        "Asked false-alarm rate": "-" if rule["fpr"] is None else f"{100 * rule['fpr']:g} %",
        "Training data": detector.notes_.get("data", "-"),
        "Training fingerprint": detector.fingerprint_[:16],
    }


def _rule_facts(rule: dict[str, Any]) -> dict[str, object]:
    """What else there is to say about the rule of the threshold."""
    labels, tail = rule.get("labels"), rule.get("extrapolation")
    facts: dict[str, object] = {}
    if labels:
        facts["Chosen on labels of"] = (
            f"{labels.get('data', 'rows')}: {labels['n_anomalies']:,} anomalies, {labels['n_normal']:,} normal rows"
        )
    if tail:
        facts["Extrapolated threshold"] = f"95 % interval {tail['low']:.5g} to {tail['high']:.5g}"
        facts["Shape of the tail"] = f"{tail['shape']:.3g} ({tail['shape_low']:.3g} to {tail['shape_high']:.3g})"
    return facts


def _group_facts(detector: "VAEDetector") -> dict[str, object]:
    if not detector.group_thresholds_ or detector.groups_ is None:
        return {}
    thresholds = detector.group_thresholds_.values()
    return {
        "Thresholds by group": f"{len(thresholds)} groups of {detector.groups_.column!r}",
        "Lowest and highest of them": f"{min(thresholds):.5g} and {max(thresholds):.5g}",
    }


def _data_facts(
    detector: "VAEDetector", data: "Data | Images", evaluation: Evaluation | Unlabelled
) -> dict[str, object]:
    classes: dict[str, object] = {}
    if isinstance(evaluation, Evaluation):
        classes = {"Normal rows": evaluation.n_normal, "Anomalies": evaluation.n_anomalies}
    return {
        "File": data.name,
        "Rows": evaluation.n_rows,
        **classes,
        "Features": detector.schema_.n_features,
        "Fingerprint": data.fingerprint()[:16],
    }


def _versions() -> dict[str, str]:
    libraries = ("torch", "scikit-learn", "pandas", "numpy")
    return {"vae-anomaly": vae_anomaly.__version__, **{library: version(library) for library in libraries}}


def _mean_history(detector: "VAEDetector") -> Mapping[str, Any]:
    """Training curves, mean over the members."""
    history = vars(detector.history_)
    curves = {name: values.mean(axis=1) for name, values in history.items() if values.ndim == 2}
    return {"epoch": history["epoch"], **curves}


def _seen(detector: "VAEDetector", scored: Scored) -> dict[str, int]:
    """How many rows the model has seen, by what for."""

    def counts(X: Any) -> NDArray[np.int64]:
        return np.array([list(detector.seen_rows(X).values())])

    found = by_parts(detector, scored.rows, counts).sum(axis=0)
    return dict(zip(detector.row_hashes_, map(int, found), strict=True))


def _latent(detector: "VAEDetector", scored: Scored) -> LatentMap | None:
    """Where rows lie among the training rows; codes of patches and means over images do not compare."""
    if not detector.can_generate:
        return None
    some = np.linspace(0, len(scored.rows) - 1, min(len(scored.rows), MAX_LATENT_ROWS)).astype(int)
    rows = scored.rows.take(some)
    codes = by_parts(detector, rows, detector.latent)
    return latent_map(detector.training_codes(), codes, y=rows.y, flagged=_flagged(scored.predictions)[some])


def _worst(detector: "VAEDetector", scored: Scored, worst: pd.DataFrame) -> list[dict[str, object]]:
    """Rows with their top features, seen and expected."""
    if not len(worst):
        return []
    rows = scored.rows.take(worst.index.to_numpy())
    X = align(detector, rows).X
    label = (None,) * len(rows) if rows.y is None else rows.y.tolist()
    features = _reasons(detector, X) if isinstance(rows, Data) else [[]] * len(rows)
    return [
        {
            "row": row[rows.id_name],
            "anomaly_score": float(row["anomaly_score"]),
            "p_value": float(row["p_value"]),
            "label": label[index],
            "is_anomaly": int(row["is_anomaly"]),
            "features": features[index],
        }
        for index, (_, row) in enumerate(worst.iterrows())
    ]


def _reasons(detector: "VAEDetector", X: pd.DataFrame) -> list[list[tuple[str, float, str, str]]]:
    """What raised the score of each row: column, contribution, seen and expected value."""
    names, contributions = top_features(detector, X, N_TOP)
    expected = pd.DataFrame(detector.reconstruct(as_fitted(detector, X))).set_axis(X.columns, axis=1)
    return [
        [
            (name, float(share), _shown(X[name].iloc[index]), _shown(expected[name].iloc[index]))
            for name, share in zip(names[index], contributions[index], strict=True)
        ]
        for index in range(len(X))
    ]


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _types(evaluation: Evaluation | Unlabelled, rows: "Data | Images", types: str | None) -> list[TypeRecall]:
    if types is None or not isinstance(evaluation, Evaluation):
        return []
    return recall_by_type(evaluation, rows.kept[types].to_numpy(dtype=object))


def _cheap_scores(detector: "VAEDetector") -> list[str]:
    """Scores of the detector that do not take long; decoding a wide image for each draw does."""
    n_drawn = len(detector.eps_) * detector.architecture_["n_entries"] * detector.schema_.n_parts
    wide = detector.holds_images and n_drawn > MAX_DRAWN_ENTRIES
    return [name for name in detector.score_names_ if not (SCORES[name].costly or (wide and SCORES[name].draws))]


def _not_compared(detector: "VAEDetector", names: list[str]) -> list[str]:
    """That some scores were left out, and how to get them."""
    left_out = [name for name in detector.score_names_ if name not in {*names, detector.score_name_}]
    if not left_out:
        return []
    return [f"Not compared, as they take long: {', '.join(left_out)}. Add one with --compare-score {left_out[0]}."]


def _compared(detector: "VAEDetector", scored: Scored, model_name: str, names: list[str]) -> list[Compared]:
    """These scores of the detector, or other detectors, on the same rows; the detector's own score comes first."""
    y = scored.rows.y
    if y is None or not (scored.others or names):
        return []
    own = scored.predictions["anomaly_score"].to_numpy(dtype=float)
    if scored.others:
        return compare_scores(y, {model_name: own, **scored.others})
    some = np.linspace(0, len(own) - 1, min(len(own), MAX_COMPARED_ROWS)).astype(int)
    if len(set(y[some])) < 2:
        return []
    names = [name for name in names if name != detector.score_name_]
    if not names:
        return compare_scores(y[some], {detector.score_name_: own[some]})

    def all_scores(X: Any) -> Floats:
        return np.stack([detector.anomaly_score(X, score_name=name) for name in names], axis=1)

    others = by_parts(detector, scored.rows.take(some), all_scores)
    return compare_scores(y[some], {detector.score_name_: own[some], **dict(zip(names, others.T, strict=True))})


def _pictures(detector: "VAEDetector", scored: Scored) -> dict[str, Pictures]:
    """Images flagged with the highest scores, missed ones, and drawn ones."""
    if isinstance(scored.rows, Data):
        return {}
    predictions = scored.predictions
    flagged = predictions[_flagged(predictions)].nlargest(MAX_PICTURES, "anomaly_score")
    missed = predictions[(predictions["is_anomaly"] == 0) & (scored.rows.y == 1)].nsmallest(
        MAX_PICTURES, "anomaly_score"
    )
    shown = {"Flagged images with the highest scores": flagged, "Missed anomalies with the lowest scores": missed}
    pictures = {
        name: _with_maps(detector, scored.rows.take(rows.index.to_numpy())) for name, rows in shown.items() if len(rows)
    }
    if detector.can_generate:
        drawn = detector.sample(MAX_PICTURES)
        pictures["Images drawn from the model"] = Pictures([""] * len(drawn), drawn)
    return pictures


def _traversal(detector: "VAEDetector") -> Grid | None:
    """Images along the most active latent units; none of a table, or where no unit is active."""
    if not (detector.holds_images and detector.can_generate and detector.active_units_[0]):
        return None
    found = traverse(detector, max_units=MAX_PICTURES)
    return Grid(found.images, [f"unit {unit + 1}" for unit in found.units], [f"{step:g}" for step in found.steps])


def _with_maps(detector: "VAEDetector", images: "Images") -> Pictures:
    x = align(detector, images).X
    return Pictures(
        [str(name) for name in images.ids],
        x,
        np.asarray(detector.reconstruct(x)) if detector.can_generate else None,
        anomaly_maps(detector, x),
        colour_scale(detector),
    )


def _samples(detector: "VAEDetector", scored: Scored) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Rows drawn from the model, and the first rows of the data that pass; pictures are no table."""
    if not isinstance(scored.rows, Data):
        return None
    drawn = detector.sample(N_SAMPLES)
    passed = np.flatnonzero(~_flagged(scored.predictions) & (scored.rows.y != 1))[:N_SAMPLES]
    real = align(detector, scored.rows.take(passed)).X
    return pd.DataFrame(drawn, columns=real.columns), real
