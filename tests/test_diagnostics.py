import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from vae_anomaly.metrics import Interval, Unlabelled
from vae_anomaly.report import (
    latent_map,
    plot_latent,
    plot_p_values,
    plot_promise,
    plot_score_histogram,
    render_report,
    to_svg,
)


def test_the_curve_of_the_p_values_is_their_distribution(rng):
    p = rng.random(300)
    x, height = plot_p_values(p).lines[1].get_data()
    at = np.array([0.1, 0.5, 0.9])
    drawn = [height[x <= value].max() for value in at]
    assert drawn == pytest.approx(stats.ecdf(p).cdf.evaluate(at), abs=2e-3)


def test_p_values_of_both_classes_and_missing_ones():
    ax = plot_p_values([0.1, np.nan, 0.9, 0.01], [0, 0, 0, 1])
    assert [line.get_label() for line in ax.lines] == ["uniform", "normal rows", "anomalies"]


def test_the_promise_shows_what_came_out(rng):
    ax = plot_promise(0.05, (0.02, 0.08), Interval(0.06, 0.04, 0.09, "Wilson, 95 %"))
    ends = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert list(ends[0]) == pytest.approx([2.0, 8.0])
    assert list(ends[1]) == pytest.approx([4.0, 9.0])


def test_the_latent_map_shows_most_of_the_variance(rng):
    codes = rng.normal(size=(200, 6)) * [9, 3, 0.1, 0.1, 0.1, 0.1]
    shown = latent_map(codes, codes[:50])
    assert sum(shown.explained) > 0.99
    assert np.allclose(shown.training[:50], shown.rows)


def test_of_many_rows_an_even_choice_is_mapped(rng):
    codes = rng.normal(size=(500, 3))
    y = np.arange(500) % 2
    shown = latent_map(codes, codes, y=y, max_rows=101)
    assert shown.rows.shape == (101, 2)
    assert 40 < shown.y.sum() < 61


def test_one_latent_variable_has_a_map(rng):
    shown = latent_map(rng.normal(size=(20, 1)), rng.normal(size=(5, 1)))
    assert (shown.rows[:, 1] == 0).all()


def test_many_dots_are_one_picture(rng):
    few, many = (plot_latent(latent_map(rng.normal(size=(n, 3)), rng.normal(size=(9, 3)))) for n in (100, 3000))
    assert "<image" not in to_svg(few.figure)
    svg = to_svg(many.figure)
    assert "<image" in svg
    assert len(svg) < 300_000


@pytest.mark.parametrize(
    "plot",
    [
        lambda ax: plot_p_values([0.1, 0.9], ax=ax),
        lambda ax: plot_promise(0.05, (0.02, 0.08), ax=ax),
        lambda ax: plot_latent(latent_map(np.eye(4), np.eye(4)), ax=ax),
        lambda ax: plot_score_histogram(Unlabelled(np.arange(9.0), 7.5), ax=ax),
    ],
)
def test_charts_draw_into_given_axes(plot):
    ax = Figure().add_subplot()
    assert plot(ax) is ax


def test_a_report_without_labels_says_what_false_alarms_explain():
    scores = np.arange(100.0)
    many = render_report(Unlabelled(scores, 79.5), title="", asked_fpr=0.05)
    few = render_report(Unlabelled(scores, 97.5), title="", asked_fpr=0.05)
    assert "most of the flagged rows are likely to be anomalies" in many
    assert "no more here than false alarms explain" in few
    assert "<td" not in few.partition("How these figures")[0]
