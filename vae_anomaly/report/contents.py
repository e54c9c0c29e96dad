"""What a report shows, before it is a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from vae_anomaly.by_type import TypeRecall
from vae_anomaly.metrics import Evaluation, Unlabelled
from vae_anomaly.paired import Compared
from vae_anomaly.pixel_metrics import PixelEvaluation
from vae_anomaly.report.diagnostics import LatentMap
from vae_anomaly.report.pictures import Grid, Pictures

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contents"]


# eq=False: arrays have no truth value, so a generated __eq__ would raise.
@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that a report can show; what is left out has no place on the page.

    Parameters
    ----------
    evaluation : Evaluation or Unlabelled
        Scores and threshold, and what labels say about them.
    title : str
        Heading of the page.
    model, data, provenance : mapping of str to object, optional
        Shown as tables of two columns, in their order.
    asked_fpr : float, optional
        False-alarm rate that the threshold was made for; the page sets it beside the realised one.
    promise : (float, float), optional
        Interval of the true rate that the number of calibration rows leaves open, as of
        :func:`vae_anomaly.thresholds.realised_rate`.
    cautions : sequence of str
        Why the figures are no test result, or what else a reader must know first.
    seen_rows : mapping of str to int
        How many of the rows the model has seen, by what for; with any, the figures are no test result.
    p_values : array-like of shape (n_samples,), optional
        Conformal p-values of the rows.
    history : mapping of str to array of shape (n_epochs,), optional
        ``epoch``, ``train_elbo``, ``val_elbo``, and the same of ``reconstruction`` and ``kl`` where recorded.
    latent : LatentMap, optional
        Of :func:`vae_anomaly.report.diagnostics.latent_map`.
    worst_flagged, worst_missed : sequence of mapping
        Flagged rows with the highest scores, and missed anomalies with the lowest; the first 50 of either are shown.
        Keys: ``row``, ``anomaly_score``, ``p_value``, ``label`` (0 or 1), ``is_anomaly`` (0 or 1) and ``features``, a
        list of (name, contribution, seen value as text, expected value as text). All but ``row`` and
        ``anomaly_score`` can be left out, and so can the expected value.
    types : sequence of TypeRecall
        Recall by kind of anomaly.
    compared : sequence of Compared
        Other scores, or other models, on the same rows; the first one is what the others are compared with.
    compared_notes : sequence of str
        Which scores are not among them, and how to get them.
    samples : (DataFrame, DataFrame), optional
        Rows drawn from the model, and rows of the data.
    pictures : mapping of str to Pictures
        For images: those flagged with the highest scores, the missed ones and drawn ones, by heading.
    traversal : Grid, optional
        For images: what the model makes of codes along its latent units.
    localised : PixelEvaluation, optional
        For images with masks: how well the maps find the defects.
    localised_notes : sequence of str
        Masks that could not be used.
    cost_miss, cost_alarm : float
        What a missed anomaly and a false alarm cost, for the expected cost beside the slider.
    """

    evaluation: Evaluation | Unlabelled
    title: str
    model: Mapping[str, object] | None = None
    data: Mapping[str, object] | None = None
    provenance: Mapping[str, object] | None = None
    asked_fpr: float | None = None
    promise: tuple[float, float] | None = None
    cautions: Sequence[str] = ()
    seen_rows: Mapping[str, int] = field(default_factory=dict)
    p_values: ArrayLike | None = None
    history: Mapping[str, ArrayLike] | None = None
    latent: LatentMap | None = None
    worst_flagged: Sequence[Mapping[str, Any]] = ()
    worst_missed: Sequence[Mapping[str, Any]] = ()
    types: Sequence[TypeRecall] = ()
    compared: Sequence[Compared] = ()
    compared_notes: Sequence[str] = ()
    samples: "tuple[pd.DataFrame, pd.DataFrame] | None" = None
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    traversal: Grid | None = None
    localised: PixelEvaluation | None = None
    localised_notes: Sequence[str] = ()
    cost_miss: float = 1.0
    cost_alarm: float = 1.0

    @property
    def is_test_result(self) -> bool:
        """Whether the figures say something about new rows: none of these rows had a part in the model."""
        return not any(self.seen_rows.values())
