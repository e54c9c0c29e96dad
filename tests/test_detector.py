import itertools
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from tables import TINY, holed, mixed, numbers

from vae_anomaly import fitting, inputs
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import CalibrationWarning, DataError, PosteriorCollapseWarning
from vae_anomaly.fitting import generator_of
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.priors import PRIORS
from vae_anomaly.row_hashes import all_hashes
from vae_anomaly.scores import SCORES, scores_for
from vae_anomaly.scoring import SCORING_BATCH
from vae_anomaly.splitting import rows_to_fit
from vae_anomaly.thresholds import THRESHOLDS, Threshold


@pytest.fixture(scope="module")
def detector():
    """Fitted on a table with columns of every kind and with holes, long enough to have learned something."""
    frame = mixed(600)
    return VAEDetector(max_steps=300, n_estimators=2, hidden=(32,)).fit(
        frame.mask(np.random.default_rng(0).random(frame.shape) < 0.05)
    )


def suitable(likelihood):
    """Normal rows that a likelihood can describe."""
    kinds = {"numbers": ["flow", "pressure", "count"], "categories": ["valve", "mode"], "any": list(mixed().columns)}
    return mixed()[kinds["any" if likelihood == "auto" else LIKELIHOODS[likelihood].columns]]


# Signs and decisions -------------------------------------------------------------------------------------------------


def test_signs():
    X = numbers()
    detector = VAEDetector(max_steps=200, n_estimators=2, hidden=(16,)).fit(X)
    odd = X[:50] * [1.0, -1.0, 1.0, -1.0]
    assert np.median(detector.anomaly_score(odd)) > np.quantile(detector.anomaly_score(X), 0.95)
    new = np.vstack([numbers(50, seed=1), odd])
    assert np.array_equal(detector.score_samples(new), -detector.anomaly_score(new))
    assert detector.offset_ == -detector.threshold_
    assert np.array_equal(detector.decision_function(new), detector.score_samples(new) - detector.offset_)
    flagged = detector.anomaly_score(new) > detector.threshold_
    assert flagged.any()
    assert not flagged.all()
    assert np.array_equal(detector.predict(new), np.where(flagged, -1, 1))


def test_a_score_at_the_threshold_is_not_flagged():
    X = numbers()
    detector = VAEDetector(**TINY).fit(X)
    detector.calibrate(X)
    at = np.flatnonzero(detector.anomaly_score(X) == detector.threshold_)
    assert at.size
    assert (detector.predict(X[at]) == 1).all()


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.25])
def test_flagged_rows_are_those_with_a_p_value_of_at_most_fpr(fpr):
    detector = VAEDetector(**TINY, fpr=fpr).fit(numbers())
    new = numbers(300, seed=1)
    assert np.array_equal(detector.p_value(new) <= fpr, detector.predict(new) == -1)


def test_realised_false_alarm_rate():
    # A new row is as good as a calibration row, so the true rate of one fit, over all draws of the calibration rows,
    # has a beta distribution. The flagged new rows then follow a beta-binomial law, wider than the binomial one. The
    # interval is that of the sum over the fits; a right detector leaves it for one in a thousand choices of seeds.
    n_fits, n_new, fpr = 24, 200, 0.1
    flagged = 0
    for seed in range(n_fits):
        rng = np.random.default_rng(1000 + seed)
        mixing = rng.normal(size=(2, 4))
        rows = rng.normal(size=(240 + n_new, 2)) @ mixing + 0.2 * rng.normal(size=(240 + n_new, 4))
        detector = VAEDetector(**TINY, fpr=fpr, random_state=seed).fit(rows[:240])
        flagged += int((detector.predict(rows[240:]) == -1).sum())
    n_calibration = detector.n_rows_["calibration"]
    n_above = math.floor((n_calibration + 1) * fpr)
    law = stats.betabinom(n_new, n_above, n_calibration + 1 - n_above)
    sums = law.rvs(size=(20_000, n_fits), random_state=np.random.default_rng(0)).sum(axis=1)
    low, high = np.quantile(sums, [0.0005, 0.9995])
    assert low <= flagged <= high
    # The test has teeth: twice or half the rate asked for lies outside.
    assert high < 2 * fpr * n_fits * n_new
    assert low > 0.5 * fpr * n_fits * n_new


# A score is a function of the row ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scores_for(images=False))
def test_scores_do_not_depend_on_order_or_company(detector, name):
    rows = holed(mixed(SCORING_BATCH + 100, seed=2), share=0.1)
    scores = detector.anomaly_score(rows, score_name=name)
    assert np.isfinite(scores).all()
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(detector.anomaly_score(rows.iloc[order], score_name=name), scores[order])
    for i in (0, 1, 57, SCORING_BATCH, len(rows) - 1):
        assert detector.anomaly_score(rows.iloc[[i]], score_name=name)[0] == scores[i]
    larger = pd.concat([mixed(333, seed=3), rows, mixed(700, seed=4)])
    assert np.array_equal(detector.anomaly_score(larger, score_name=name)[333 : 333 + len(rows)], scores)


@pytest.mark.parametrize("method", ["explain", "p_value", "predict", "decision_function"])
def test_nothing_else_depends_on_order_either(detector, method):
    rows = mixed(100, seed=2)
    order = np.random.default_rng(0).permutation(len(rows))
    whole = getattr(detector, method)(rows)
    assert np.array_equal(getattr(detector, method)(rows.iloc[order]), whole[order])
    assert np.array_equal(getattr(detector, method)(rows.iloc[[7]])[0], whole[7])


def test_seeds_decide_scores():
    X = numbers()
    scores = [VAEDetector(**TINY, random_state=seed).fit(X).anomaly_score(X) for seed in (0, 0, 1)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_a_frame_without_columns_is_refused_by_number():
    detector = VAEDetector(**TINY).fit(np.asarray(numbers(60)))
    with pytest.raises(ValueError, match="0 feature"):
        detector.anomaly_score(pd.DataFrame(index=range(3)))


def test_global_random_states_are_left_alone():
    X = numbers()
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the state is the point
    detector = VAEDetector(**TINY, prior="vamp").fit(X)
    for name in scores_for(images=False):
        detector.anomaly_score(X, score_name=name)
    detector.explain(X)
    detector.sample(5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    now = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(now[1], numpy_state[1])
    assert now[2] == numpy_state[2]


def test_global_random_states_do_not_matter():
    X, scores, drawn = numbers(), [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        detector = VAEDetector(**TINY).fit(X)
        scores.append(detector.anomaly_score(X, score_name="neg_log_px"))
        drawn.append(detector.sample(5))
    assert np.array_equal(*scores)
    assert np.array_equal(*drawn)


def test_the_table_is_not_changed():
    frame, X = mixed(), numbers()
    before = frame.copy(deep=True), X.copy()
    VAEDetector(**TINY).fit(frame).predict(frame)
    VAEDetector(**TINY).fit(X).predict(X)
    pd.testing.assert_frame_equal(frame, before[0])
    assert np.array_equal(X, before[1])


# Explanations --------------------------------------------------------------------------------------------------------


def test_one_pass_gives_the_scores_and_the_contributions_of_two(detector):
    new = mixed(60, seed=1)
    new = new.reindex([*range(4), 99, *range(5, 60)]).reset_index(drop=True)
    new.loc[7, "flow"] = np.nan
    scores, contributions = detector.explained_score(new)
    assert np.array_equal(scores, detector.anomaly_score(new), equal_nan=True)
    assert np.array_equal(contributions, detector.explain(new), equal_nan=True)


@pytest.mark.parametrize("name", scores_for(images=False))
def test_contributions_sum_to_the_score(detector, name):
    rows = holed(mixed(60, seed=2), share=0.1)
    contributions = detector.explain(rows, score_name=name)
    assert contributions.shape == rows.shape
    scores = detector.anomaly_score(rows, score_name=name)
    # float32 sums of about ten terms of both signs.
    np.testing.assert_allclose(contributions.sum(axis=1), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column", ["flow", "pressure", "count"])
def test_the_odd_column_is_named(detector, column):
    rows = mixed(30, seed=2)
    rows[column] += 12 * rows[column].std()
    excess = detector.explain(rows) - detector.usual_shares_
    top = rows.columns[excess.argmax(axis=1)]
    # Flow and pressure go together: if one is off, the other looks odd beside it.
    allowed = {"flow", "pressure"} if column != "count" else {"count"}
    assert np.isin(top, sorted(allowed)).mean() > 0.8


# Missing and unseen values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scores_for(images=False))
def test_rows_with_holes_are_scored_and_rows_without_values_are_not(detector, name):
    rows = mixed(6, seed=2)
    rows = rows.mask(np.eye(6, dtype=bool))
    rows.loc[3, :] = None
    scores = detector.anomaly_score(rows, score_name=name)
    assert np.isnan(scores).tolist() == [False, False, False, True, False, False]


def test_a_row_without_values_is_not_flagged(detector):
    rows = pd.DataFrame([[None] * 6], columns=mixed().columns)
    assert np.isnan(detector.anomaly_score(rows)[0])
    assert np.isnan(detector.p_value(rows)[0])
    assert detector.predict(rows)[0] == 1


@pytest.mark.parametrize("missing", [None, np.nan, -np.nan, pd.NA, float("-nan")], ids=repr)
@pytest.mark.parametrize("column", ["flow", "valve", "mode"])
def test_a_hole_is_a_hole(detector, column, missing):
    rows = mixed(4, seed=2).astype(object)
    rows.loc[:, column] = np.nan
    other = rows.copy()
    other[column] = pd.Series([missing] * 4, dtype=object)
    assert np.array_equal(detector.anomaly_score(other), detector.anomaly_score(rows))


@pytest.mark.parametrize("kind", [float, np.float32, int])
def test_what_is_masked_is_missing(kind):
    """Masks were left out of account."""
    X = numbers().astype(kind)
    masked = np.ma.masked_array(X, mask=np.random.default_rng(0).random(X.shape) < 0.1)
    holes = np.where(masked.mask, np.nan, X)
    detector = VAEDetector(**TINY).fit(masked)
    assert np.array_equal(detector.anomaly_score(masked), VAEDetector(**TINY).fit(holes).anomaly_score(holes))
    assert np.array_equal(detector.predict(np.ma.masked_array(X)), detector.predict(X))


def test_masked_pixels_are_refused(rng):
    images = np.ma.masked_array(rng.random((60, 1, 8, 8)))
    detector = VAEDetector(**TINY).fit(images)
    images[3, 0, 2] = np.ma.masked
    for call in (detector.predict, detector.fit):
        with pytest.raises(DataError, match="X holds masked pixels, and an image has no holes"):
            call(images)


def test_complex_columns_are_refused(detector):
    """Their imaginary part was dropped."""
    frame = mixed().assign(flow=mixed()["flow"] + 2j)
    for call in (detector.predict, VAEDetector(**TINY).fit):
        with pytest.raises(DataError, match="Column 'flow' holds complex numbers"):
            call(frame)


def test_what_a_hole_would_have_held_does_not_matter(detector):
    usual, odd = mixed(20, seed=2), mixed(20, seed=2).assign(flow=1e9, mode="never seen")
    holes = np.isin(usual.columns, ["flow", "mode"])[None, :].repeat(20, axis=0)
    assert np.array_equal(detector.anomaly_score(usual.mask(holes)), detector.anomaly_score(odd.mask(holes)))


@pytest.mark.parametrize("name", scores_for(images=False))
@pytest.mark.parametrize("trained_with_holes", [True, False])
def test_holes_neither_raise_nor_lower_scores(name, trained_with_holes):
    X = numbers(600, n_columns=8)
    train = holed(X, share=0.1) if trained_with_holes else X
    detector = VAEDetector(max_steps=300, n_estimators=2, hidden=(32,), score_name=name).fit(train)
    whole = detector.anomaly_score(numbers(400, seed=1, n_columns=8))
    punched = detector.anomaly_score(holed(numbers(400, seed=1, n_columns=8)))
    assert np.isfinite(punched).all()
    low, high = np.quantile(whole, [0.05, 0.95])
    assert low < np.median(punched) < high


def test_rows_set_aside_do_not_shape_the_schema():
    """A row with a value of its own is trained on (its value is known) or calibrates (its value is new)."""
    X = mixed(2000).assign(mode=["odd", *(["idle", "run", "wash"] * 667)[:1999]])
    known = [
        "odd" in VAEDetector(**{**TINY, "random_state": seed}).fit(X).schema_.columns[list(X).index("mode")].values
        for seed in range(20)
    ]
    # A fifth calibrates: the chance that all 20 fits fall on one side is 0.01.
    assert 0 < sum(known) < 20


@pytest.mark.parametrize("column", ["valve", "mode", "on"])
def test_unseen_categories_score_higher_than_seen_ones(detector, column):
    rows = mixed(100, seed=2)
    unseen = rows.astype({column: object}).assign(**{column: 7 if column == "on" else "never seen"})
    assert (detector.anomaly_score(unseen) > detector.anomaly_score(rows)).mean() > 0.95


def test_the_further_off_a_value_the_higher_its_score(detector):
    rows = pd.concat([mixed(1, seed=2)] * 7).assign(flow=[5.0, 20.0, 1e2, 1e3, 1e4, 1e30, 1e300])
    scores = detector.anomaly_score(rows)
    assert np.isfinite(scores).all()
    assert all(one <= other for one, other in itertools.pairwise(scores))


def test_robust_fits_do_not_learn_the_anomalies_among_the_training_rows():
    rng = np.random.default_rng(0)
    cluster = rng.normal(6.0, 0.3, size=(60, 4))
    X, new = np.vstack([numbers(400), cluster[:20]]), numbers(200, seed=1)
    areas = []
    for robust in (0.0, 0.1):
        # The likelihood does not follow a twentieth of the rows anyway; with them among the rows to compare with, no
        # other of their kind is novel.
        asked = {"score_name": "nearest_neighbour", "robust": robust}
        detector = VAEDetector(max_steps=400, n_estimators=2, hidden=(32,), **asked).fit(X)
        scores = detector.anomaly_score(np.vstack([new, cluster[20:]]))
        areas.append(roc_auc_score(np.repeat([0, 1], [200, 40]), scores))
    assert areas[1] > areas[0] + 0.3


# Calibration ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_calibration_moves_the_threshold_and_not_the_scores(threshold):
    X = numbers(800)
    detector = VAEDetector(**TINY, threshold=threshold, fpr=0.1).fit(X)
    scores, before = detector.score_samples(X), detector.offset_
    assert detector.calibrate(numbers(500, seed=1), fpr=0.2) is detector
    assert detector.offset_ > before
    assert np.array_equal(detector.score_samples(X), scores)
    assert len(detector.calibration_scores_) == 500
    rule = detector.threshold_rule_
    assert (rule["name"], rule["fpr"], rule["out_of_fold"]) == (threshold, 0.2, False)
    assert (rule["extrapolation"] is not None) == (threshold == "peaks_over_threshold")


def test_calibration_can_change_the_rule():
    detector = VAEDetector(**TINY).fit(numbers())
    detector.calibrate(numbers(100, seed=1), threshold="quantile")
    scores = detector.anomaly_score(numbers(100, seed=1))
    assert detector.threshold_ == np.quantile(scores, 0.95)
    assert np.array_equal(detector.calibration_scores_, np.sort(scores))


def test_rows_set_aside_calibrate():
    X = numbers(2000)
    detector = VAEDetector(**TINY).fit(X)
    assert detector.n_rows_ == {"train": 1600, "calibration": 400}
    scores = np.sort(detector.anomaly_score(X))
    assert np.isin(detector.calibration_scores_, scores).all()


def test_every_row_of_a_small_table_is_calibrated_by_the_member_that_did_not_see_it():
    X = numbers(300)
    detector = VAEDetector(**{**TINY, "n_estimators": 6}).fit(X)
    assert detector.n_rows_ == {"train": 300, "calibration": 300}
    order = torch.randperm(300, generator=generator_of(0, 6)).numpy()
    found = []
    for member, vae in enumerate(detector.ensemble_.members()):
        fold = torch.from_numpy(detector.schema_.encode(pd.DataFrame(X[order[50 * member : 50 * (member + 1)]])))
        # None of the rows that the member keeps to compare with is of its own fold.
        assert torch.cdist(fold, vae.exemplars).min() > 1e-4
        found.append(SCORES["novelty"].function(vae, fold, detector.eps_).detach().numpy())
    np.testing.assert_allclose(detector.calibration_scores_, np.sort(np.concatenate(found)), rtol=1e-4, atol=1e-5)


def test_realised_false_alarm_rate_of_small_tables():
    """Every row is calibrated by one member and scored by all, so the rate errs to the safe side, if at all."""
    n_fits, n_new, fpr = 16, 400, 0.1
    rates = []
    for seed in range(n_fits):
        rng = np.random.default_rng(2000 + seed)
        mixing = rng.normal(size=(2, 4))
        rows = rng.normal(size=(180 + n_new, 2)) @ mixing + 0.2 * rng.normal(size=(180 + n_new, 4))
        options = {**TINY, "n_estimators": 6, "max_steps": 100}
        detector = VAEDetector(**options, fpr=fpr, random_state=seed).fit(rows[:180])
        rates.append((detector.predict(rows[180:]) == -1).mean())
    # Standard error of the mean: about 0.007 (180 calibration rows and 400 new ones a fit).
    assert 0.5 * fpr < np.mean(rates) < fpr + 0.02


@pytest.mark.parametrize(("fpr", "needed"), [(0.05, 19), (0.01, 99), (0.001, 999)])
def test_too_few_rows_to_calibrate(fpr, needed):
    X = numbers(30)
    with pytest.warns(CalibrationWarning, match=f"fpr={fpr} needs at least {needed} calibration rows, and these 30"):
        detector = VAEDetector(**TINY, fpr=fpr).fit(X)
    assert detector.threshold_ == math.inf
    assert (detector.predict(X * 1e6) == 1).all()
    assert np.isfinite(detector.p_value(X)).all()
    with pytest.raises(ValueError, match=f"fpr={fpr} needs at least {needed} calibration samples, got 10"):
        detector.calibrate(X[:10])


def test_enough_rows_make_no_warning(recwarn):
    VAEDetector(**TINY).fit(numbers(rows_to_fit(19, TINY["n_estimators"])))
    assert not [warning for warning in recwarn if warning.category is CalibrationWarning]


@pytest.mark.parametrize("rule", LABEL_THRESHOLDS)
def test_a_threshold_chosen_on_labels_changes_nothing_else(rule):
    detector, new = VAEDetector(**TINY).fit(numbers()), numbers(100, seed=1)
    new[:30] += np.linspace(0, 30, 30)[:, None]
    y = (np.arange(100) < 30).astype(int)
    scores, p_values = detector.anomaly_score(new), detector.p_value(new)
    parameters = LABEL_THRESHOLDS[rule].parameters
    assert detector.choose_threshold(new, y, rule) is detector
    assert detector.threshold_ == -detector.offset_ == LABEL_THRESHOLDS[rule].function(y, scores)
    assert np.array_equal(detector.anomaly_score(new), scores)
    assert np.array_equal(detector.p_value(new), p_values)
    found = detector.threshold_rule_
    assert (found["name"], found["fpr"]) == (rule, parameters.get("fpr"))
    assert found["parameters"] == {name: value for name, value in parameters.items() if name != "fpr"}
    flagged = detector.predict(new) == -1
    assert found["labels"] == {
        "n_normal": 70,
        "n_anomalies": 30,
        "normal_flagged": flagged[30:].sum(),
        "anomalies_flagged": flagged[:30].sum(),
    }


def test_a_threshold_chosen_on_labels_leaves_rows_out_that_cannot_be_scored():
    detector, new = VAEDetector(**TINY).fit(numbers()), numbers(100, seed=1)
    new[3] = np.nan
    detector.choose_threshold(new, np.arange(100) < 20)
    assert (detector.threshold_rule_["labels"]["n_anomalies"], detector.threshold_rule_["labels"]["n_normal"]) == (
        19,
        80,
    )


@pytest.mark.parametrize(
    ("y", "rule", "parameters", "sentence"),
    [
        ([0] * 50, "youden", {}, "there are no anomalies among the 50 labelled rows"),
        ([0, 1], "youden", {}, r"y has shape \(2,\), expected one label for each of the 50 rows of X"),
        ([0, 1] * 25, "cost", {"beta": 2.0}, "'cost' has no parameter 'beta': it takes cost_miss and cost_alarm"),
        (
            [0, 1] * 25,
            "elbow",
            {},
            "Unknown threshold 'elbow'. Choose from 'cost', 'f_beta', 'recall_at_fpr', 'youden'",
        ),
    ],
)
def test_a_failed_choice_changes_nothing(y, rule, parameters, sentence):
    detector = VAEDetector(**TINY).fit(numbers())
    before = detector.threshold_, detector.threshold_rule_
    with pytest.raises(ValueError, match=sentence):
        detector.choose_threshold(numbers(50, seed=1), y, rule, **parameters)
    assert (detector.threshold_, detector.threshold_rule_) == before


def test_after_a_choice_on_labels_a_calibration_names_its_rule():
    detector = VAEDetector(**TINY, fpr=0.1).fit(numbers())
    wanted = detector.calibrate(numbers(50, seed=2), threshold="conformal").threshold_
    detector.choose_threshold(numbers(50, seed=1), [0, 1] * 25)
    with pytest.raises(
        ValueError, match=r"The threshold was chosen on labels, by 'youden'\. Name a rule for normal data"
    ):
        detector.calibrate(numbers(50, seed=2))
    detector.calibrate(numbers(50, seed=2), threshold="conformal")
    assert detector.threshold_ == wanted
    assert detector.threshold_rule_["labels"] is None


@pytest.mark.parametrize("n_rows", [300, 2000])
def test_rows_that_were_seen_are_counted(n_rows):
    X = numbers(n_rows)
    detector = VAEDetector(**TINY).fit(X)
    counts = detector.n_rows_
    assert detector.seen_rows(X) == {"training": counts["train"], "calibration": counts["calibration"], "labels": 0}
    new = numbers(60, seed=1)
    assert detector.seen_rows(new) == {"training": 0, "calibration": 0, "labels": 0}
    detector.calibrate(new[:40])
    assert detector.seen_rows(new) == {"training": 0, "calibration": 40, "labels": 0}
    detector.choose_threshold(new[20:], [0, 1] * 20)
    assert detector.seen_rows(new) == {"training": 0, "calibration": 40, "labels": 40}
    detector.calibrate(new[:30], threshold="conformal")
    assert detector.seen_rows(np.vstack([new, new[:5], X[:3]]))["labels"] == 0
    assert detector.seen_rows(np.vstack([new, new[:5]]))["calibration"] == 35


def test_whole_numbers_are_the_same_rows_whatever_their_type():
    rows = mixed()
    detector = VAEDetector(**TINY).fit(rows)
    assert detector.seen_rows(rows.astype({"count": float}))["training"] == 200
    assert detector.seen_rows(rows.assign(flow=rows["flow"] + 0.01))["training"] == 0


def test_a_rule_that_refuses_the_scores_costs_the_threshold_and_not_the_fit(monkeypatch):
    def refuse(scores, fpr):
        raise ValueError("The tail is too short.")

    monkeypatch.setitem(THRESHOLDS, "peaks_over_threshold", Threshold(refuse, lambda fpr: 1, refuse))
    with pytest.warns(CalibrationWarning, match=r"The tail is too short\. No row will be flagged until calibrate"):
        detector = VAEDetector(**TINY, threshold="peaks_over_threshold").fit(numbers())
    assert detector.threshold_ == math.inf
    assert detector.threshold_rule_["extrapolation"] is None
    assert len(detector.calibration_scores_) == 80


@pytest.mark.parametrize(("n_rows", "named"), [(400, False), (1300, True)])
def test_too_few_rows_for_conformal_may_be_enough_to_extrapolate(n_rows, named):
    with pytest.warns(CalibrationWarning) as caught:
        VAEDetector(**TINY, fpr=0.001).fit(numbers(n_rows))
    assert any("--threshold peaks_over_threshold" in str(warning.message) for warning in caught) == named


@pytest.mark.parametrize(
    ("options", "rows"),
    [({"fpr": 0.001}, 50), ({}, 5), ({"threshold": "elbow"}, 50), ({"fpr": 1.5}, 50)],
    ids=["fpr", "rows", "unknown", "range"],
)
def test_a_failed_calibration_changes_nothing(options, rows):
    X = numbers()
    detector = VAEDetector(**TINY).fit(X)
    before = detector.threshold_, detector.offset_, detector.threshold_rule_, detector.p_value(X)
    with pytest.raises(ValueError, match=r"fpr|threshold"):
        detector.calibrate(numbers(rows, seed=1), **options)
    assert (detector.threshold_, detector.offset_, detector.threshold_rule_) == before[:3]
    assert np.array_equal(detector.p_value(X), before[3])


# Samples -------------------------------------------------------------------------------------------------------------


def test_samples_have_the_types_of_the_table():
    frame = mixed()
    drawn = VAEDetector(**TINY).fit(frame).sample(20)
    assert drawn.dtypes.to_dict() == frame.dtypes.to_dict()


def test_samples_have_the_units_and_categories_of_the_table(detector):
    frame, drawn = mixed(600), detector.sample(200)
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["valve"]) == {"open", "shut"}
    assert set(drawn["mode"]) <= {"idle", "run", "wash", "other"}
    for name in ("flow", "pressure", "count"):
        assert abs(drawn[name].mean() - frame[name].mean()) < frame[name].std()
        assert 0.4 < drawn[name].std() / frame[name].std() < 2.5
    assert np.isfinite(detector.anomaly_score(drawn)).all()


def test_samples_of_an_array_are_an_array():
    drawn = VAEDetector(**TINY).fit(numbers()).sample(7)
    assert isinstance(drawn, np.ndarray)
    assert drawn.shape == (7, 4)
    assert drawn.dtype == np.float64


def test_what_is_expected_has_the_units_and_types_of_the_table(detector):
    frame = mixed(50, seed=3)
    expected = detector.reconstruct(frame)
    assert list(expected.columns) == list(frame.columns)
    assert np.corrcoef(expected["flow"], frame["flow"])[0, 1] > 0.5
    assert set(expected["mode"]) <= {*frame["mode"], "other"}
    shuffled = detector.reconstruct(frame[::-1])[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(shuffled, expected)


def test_codes_of_training_rows_are_those_of_the_member_that_kept_them():
    X = numbers(80)
    detector = VAEDetector(**TINY).fit(X)
    kept, codes = detector.training_codes(), detector.latent(X)
    assert kept.shape[1] == codes.shape[1]
    nearest = np.abs(kept[:, None] - codes[None]).max(axis=-1).min(axis=1)
    assert nearest.max() < 1e-5
    with pytest.raises(ValueError, match="between 0 and"):
        detector.latent(X, member=99)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 1000])
def test_number_of_samples(detector, n_samples):
    assert len(detector.sample(n_samples)) == n_samples


@pytest.mark.parametrize("prior", PRIORS)
def test_fewer_samples_than_members(prior):
    detector = VAEDetector(**{**TINY, "n_estimators": 3}, prior=prior).fit(numbers())
    drawn = detector.sample(2)
    assert drawn.shape == (2, numbers().shape[1])
    assert np.isfinite(drawn).all()


def test_seeds_decide_samples(detector):
    first, again, other = (detector.sample(20, random_state=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_samples_are_drawn_by_any_random_state(detector):
    """None, a RandomState and NumPy's integers were refused by torch, which did not say of what."""
    wanted = detector.sample(20, random_state=3)
    pd.testing.assert_frame_equal(detector.sample(20, random_state=np.int64(3)), wanted)
    state = np.random.RandomState(3)
    first, second = (detector.sample(20, random_state=state) for _ in range(2))
    assert not first.equals(second)
    pd.testing.assert_frame_equal(detector.sample(20, random_state=np.random.RandomState(3)), first)
    assert not detector.sample(20, random_state=None).equals(detector.sample(20, random_state=None))


@pytest.mark.parametrize("n_samples", [1.5, 0, -1, "3", None, True])
def test_a_number_of_samples_is_a_whole_one(detector, n_samples):
    with pytest.raises(ValueError, match=f"n_samples={n_samples!r} must be an integer of at least 1"):
        detector.sample(n_samples)


@pytest.mark.parametrize("state", [-1, 2**64, 1.5, "x"])
def test_a_random_state_that_is_none_is_named(detector, state):
    with pytest.raises(ValueError, match=f"random_state={state!r} must be an integer from 0"):
        detector.sample(random_state=state)
    with pytest.raises(ValueError, match=f"random_state={state!r} must be an integer from 0"):
        VAEDetector(**TINY, random_state=state).fit(numbers())


@pytest.mark.filterwarnings("error")
def test_codes_may_be_views(detector):
    codes = detector.latent(mixed(6))
    wanted = detector.decode(codes)
    codes.flags.writeable = False
    pd.testing.assert_frame_equal(detector.decode(codes), wanted)
    pd.testing.assert_frame_equal(detector.decode(codes[::-1])[::-1].reset_index(drop=True), wanted)
    with pytest.raises(ValueError, match=r"codes has shape \(0, \d+\), expected .* one row or more"):
        detector.decode(codes[:0])


# Registries ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::vae_anomaly.errors.PosteriorCollapseWarning")
@pytest.mark.parametrize("likelihood", ["auto", *LIKELIHOODS])
def test_every_likelihood(likelihood):
    rows = suitable(likelihood)
    detector = VAEDetector(**TINY, likelihood=likelihood).fit(rows)
    assert np.isfinite(detector.anomaly_score(rows)).all()
    hole = rows.mask(np.arange(rows.size).reshape(rows.shape) % rows.shape[1] == 0)
    assert np.isfinite(detector.anomaly_score(hole)).all()
    assert detector.sample(3).shape == (3, rows.shape[1])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("table", [mixed, numbers])
def test_every_prior(prior, table):
    detector = VAEDetector(**TINY, prior=prior, score_name="neg_elbo").fit(table())
    assert np.isfinite(detector.anomaly_score(table())).all()
    assert len(detector.sample(3)) == 3


@pytest.mark.parametrize("name", scores_for(images=False))
def test_every_score_can_detect(name):
    detector = VAEDetector(**TINY, score_name=name).fit(numbers())
    assert np.array_equal(detector.anomaly_score(numbers()), detector.anomaly_score(numbers(), score_name=name))
    assert 0 < (detector.predict(numbers()) == -1).mean() < 0.3


@pytest.mark.parametrize("likelihood", [name for name, kind in LIKELIHOODS.items() if kind.columns == "numbers"])
def test_likelihoods_of_numbers_refuse_text(likelihood):
    with pytest.raises(DataError, match="Column 'valve' holds text, and this likelihood describes numbers only"):
        VAEDetector(**TINY, likelihood=likelihood).fit(mixed())


# What can't be used --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "what", "registry"),
    [
        ("likelihood", "likelihood", ["auto", *LIKELIHOODS]),
        ("prior", "prior", PRIORS),
        ("score_name", "score", ["auto", *SCORES]),
        ("threshold", "threshold", THRESHOLDS),
    ],
)
def test_unknown_names(parameter, what, registry):
    known = ", ".join(map(repr, sorted(registry)))
    with pytest.raises(ValueError, match=f"^Unknown {what} 'elbow'. Choose from {known}.$"):
        VAEDetector(**{**TINY, parameter: "elbow"}).fit(numbers())


def test_unknown_score_and_threshold_afterwards(detector):
    for call in (detector.anomaly_score, detector.explain):
        for name in ("", [], 0):
            with pytest.raises(ValueError, match=f"Unknown score {re.escape(repr(name))}"):
                call(mixed(), score_name=name)
        with pytest.raises(ValueError, match=r"Unknown score 'elbow'\. Choose from 'input_complexity'"):
            call(mixed(), score_name="elbow")
    with pytest.raises(ValueError, match=r"Unknown threshold 'elbow'\. Choose from 'conformal'"):
        VAEDetector(**TINY).fit(numbers()).calibrate(numbers(), threshold="elbow")


@pytest.mark.parametrize("fpr", [0, 0.0, 1, -0.1, 1.5, math.nan, math.inf])
def test_fpr_outside_0_and_1(fpr):
    with pytest.raises(ValueError, match=f"fpr={fpr} must lie between 0 and 1"):
        VAEDetector(**TINY, fpr=fpr).fit(numbers())
    with pytest.raises(ValueError, match=f"fpr={fpr} must lie between 0 and 1"):
        VAEDetector(**TINY).fit(numbers()).calibrate(numbers(), fpr=fpr)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"n_estimators": 0}, "n_estimators=0 must be an integer of at least 1"),
        ({"n_mc": 0}, "n_mc=0 must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be an integer of at least 1"),
        ({"latent_dim": 0}, "latent_dim=0 must be an integer of at least 1"),
        ({"learning_rate": 0}, "learning_rate=0 must be a number above 0"),
        ({"min_scale": math.nan}, "min_scale=nan must be a number above 0"),
        ({"beta": -1}, "beta=-1 must"),
        ({"hidden": (0,)}, r"hidden=\(0,\) must"),
        ({"hidden": None}, "hidden=None must hold positive integers"),
        ({"hidden": 5}, "hidden=5 must hold positive integers"),
        ({"hidden": (True,)}, r"hidden=\(True,\) must hold positive integers"),
        ({"flips": None}, "flips=None must be a sequence of 'h'"),
        ({"flips": ([],)}, r"flips=\(\[\],\) must be a sequence of 'h'"),
        ({"categorical_features": None}, "categorical_features=None must be a sequence of column names"),
        ({"likelihood": []}, r"Unknown likelihood \[\]"),
        ({"threshold": {}}, "Unknown threshold {}"),
        ({"score_name": ["kl"]}, r"Unknown score \['kl'\]"),
        ({"backbone": []}, r"Unknown backbone \[\]"),
        ({"device": None}, "device=None must be a name such as 'auto'"),
        ({"device": 0}, "device=0 must be a name such as 'auto'"),
        ({"device": "abacus"}, "abacus"),
        ({"categorical_features": ("nope",)}, "'nope'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parameters_out_of_range(params, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAEDetector(**{**TINY, **params}).fit(mixed())


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_in_a_frame(value):
    frame = mixed()
    frame.loc[16, "flow"] = value
    with pytest.raises(ValueError, match=f"row 17, column 'flow': {value:g} is not finite"):
        VAEDetector(**TINY).fit(frame)
    detector = VAEDetector(**TINY).fit(mixed())
    with pytest.raises(ValueError, match=f"row 17, column 'flow': {value:g} is not finite"):
        detector.predict(frame)


def test_infinite_values_in_an_array():
    X = numbers()
    X[3, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        VAEDetector(**TINY).fit(X)


@pytest.mark.parametrize("values", [[np.inf], [np.nan, -np.inf]])
def test_infinite_values_to_be_scored(values):
    detector, X = VAEDetector(**TINY).fit(numbers()), numbers()
    X[3, : len(values)] = values
    with pytest.raises(ValueError, match="infinity"):
        detector.anomaly_score(X)


def test_an_array_is_scored_as_it_is(monkeypatch):
    """Without a frame or a check in between that would change nothing, and with the scores of both."""
    X = numbers()
    X[5, 2] = np.nan
    detector = VAEDetector(**TINY).fit(X)
    # As finite as all others, and their sum is not.
    X[6] = 1e308
    wanted = detector.anomaly_score(X.tolist())
    kept = X.copy()
    monkeypatch.setattr(inputs, "_frame", lambda *args, **kwargs: pytest.fail("asked for a frame"))
    np.testing.assert_array_equal(detector.anomaly_score(X), wanted)
    np.testing.assert_array_equal(detector.anomaly_score(np.asfortranarray(X)), wanted)
    np.testing.assert_array_equal(X, kept)
    monkeypatch.undo()
    np.testing.assert_array_equal(detector.anomaly_score(X.astype(object)), wanted)


@pytest.mark.parametrize(
    ("X", "sentence"),
    [
        (np.zeros((2, 3)), "X has 3 features, but VAEDetector is expecting 4"),
        (np.zeros((0, 4)), "Found array with 0 sample"),
        (np.zeros(4), "Expected 2D array, got 1D"),
        (np.full((1, 4), np.inf), "infinity"),
        (np.zeros((1, 4), dtype=complex), "Complex data not supported"),
    ],
    ids=["narrow", "empty", "flat", "infinite", "complex"],
)
def test_an_array_that_is_not_like_the_training_rows(X, sentence):
    detector = VAEDetector(**TINY).fit(numbers())
    with pytest.raises(ValueError, match=sentence):
        detector.anomaly_score(X)


def test_an_array_for_a_model_that_knows_texts():
    # Columns whose names are no texts have none for scikit-learn.
    frame = pd.DataFrame([["open", 1.0], ["shut", 2.0], ["open", 4.0], ["shut", 5.0]] * 20)
    detector = VAEDetector(**TINY).fit(frame)
    floats = np.array([[1.0, 2.0], [np.nan, 2.0]])
    np.testing.assert_array_equal(detector.anomaly_score(floats), detector.anomaly_score(pd.DataFrame(floats)))


def test_columns_that_say_nothing():
    frame = mixed().assign(empty=np.nan, same=7.0, text=[f"note {i}" for i in range(200)])
    detector = VAEDetector(**TINY).fit(frame)
    empty, same, text = detector.schema_.notes()
    assert re.match("Column 'empty' has no value in the training rows.* ignored", empty)
    assert re.match("Column 'same' has one and the same value in all training rows", same)
    assert re.match("Column 'text' has text that hardly repeats.* ignored", text)
    # An ignored column has no say, and no share in the score.
    other = frame.assign(empty=3.0, text="anything")
    assert np.array_equal(detector.anomaly_score(other), detector.anomaly_score(frame))
    assert (detector.explain(frame)[:, [6, 8]] == 0).all()
    assert (detector.anomaly_score(frame.assign(same=8.0)) > detector.anomaly_score(frame)).mean() > 0.95


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="No column has two different values"):
        VAEDetector(**TINY).fit(pd.DataFrame({"a": [1.0] * 50, "b": ["x"] * 50}))
    with pytest.raises(DataError, match="No numeric column, and no text column with repeated values"):
        VAEDetector(**TINY).fit(pd.DataFrame({"note": [f"note {i}" for i in range(100)]}))


def test_posterior_collapse_is_reported():
    with pytest.warns(PosteriorCollapseWarning, match="2 of 2 members ignore their latent variables"):
        detector = VAEDetector(**{**TINY, "max_steps": 60}, beta=1000.0).fit(numbers())
    assert detector.active_units_.tolist() == [0, 0]


def test_progress_is_told():
    told = []
    VAEDetector(**TINY).fit(numbers(), on_check=lambda *args: told.append(args))
    shares, epochs, elbos = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1.0
    assert epochs[-1] > 0
    assert np.isfinite(elbos).all()


def test_nobody_who_stops_a_fit_waits_for_hashes(monkeypatch):
    monkeypatch.setattr(fitting, "HASHED", 4000)
    X, stopped, hashed = numbers(5000), threading.Event(), []

    def slowly(rows):
        hashed.append(len(rows))
        stopped.wait(timeout=60)
        time.sleep(0.3)
        return all_hashes(rows)

    def stop(*args):
        stopped.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "all_hashes", slowly)
    with pytest.raises(KeyboardInterrupt):
        VAEDetector(**TINY).fit(X, on_check=stop)
    assert hashed == [1000]


# GPU -----------------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", scores_for(images=False))
def test_fitted_on_a_gpu_and_scored_on_a_cpu(name, tmp_path):
    frame = mixed()
    detector = VAEDetector(**TINY, device="cuda", score_name=name).fit(frame)
    detector.save(tmp_path / "model.safetensors")
    moved = load(tmp_path / "model.safetensors", device="cpu")
    assert detector.ensemble_.device.type == "cuda"
    assert moved.ensemble_.device.type == "cpu"
    # float32 on both, summed in another order.
    np.testing.assert_allclose(moved.anomaly_score(frame), detector.anomaly_score(frame), rtol=1e-3, atol=1e-3)
    assert moved.threshold_ == detector.threshold_
    assert moved.sample(3).equals(detector.sample(3))


@pytest.mark.gpu
@needs_gpu
def test_global_random_state_of_a_gpu_is_left_alone():
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    VAEDetector(**TINY, device="cuda").fit(numbers()).sample(3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_samples_drawn_in_threads_are_those_drawn_alone(detector):
    wanted = detector.sample(2000, random_state=3)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: detector.sample(2000, random_state=3), range(24)))
    assert all(one.equals(wanted) for one in drawn)


@pytest.mark.parametrize("deviations", [6.0, 10.0, 20.0, 50.0])
def test_the_column_that_was_moved_is_the_one_that_is_named(deviations, rng):
    """A spike bends the code, and with it what is expected of the other columns."""
    mix = rng.normal(size=(3, 8))
    X, new = (rng.normal(size=(n, 3)) @ mix + 0.2 * rng.normal(size=(n, 8)) for n in (600, 80))
    moved = rng.integers(8, size=len(new))
    new[np.arange(len(new)), moved] += deviations * X.std(axis=0)[moved]
    detector = VAEDetector(n_estimators=2, max_steps=200).fit(X)
    excess = detector.explain(new) - detector.usual_shares_
    assert (excess.argmax(axis=1) == moved).mean() > 0.8
