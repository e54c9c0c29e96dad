"""What the parameters of a detector may be."""

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state

from vae_anomaly.augment import FLIPS
from vae_anomaly.backbones import BACKBONES
from vae_anomaly.errors import look_up
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.nets import NETS
from vae_anomaly.priors import PRIORS
from vae_anomaly.products import PRECISIONS, precision_fault
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import THRESHOLDS, check_fpr

__all__ = ["LIMITS", "Limits", "check_params", "check_precision", "device_fault", "find_device", "seed_of"]


class Limits(NamedTuple):
    """What a numeric parameter may be."""

    kind: type[Integral] | type[Real]
    low: float
    high: float = math.inf
    open: bool = False
    """Whether the ends are excluded."""
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """ValueError if ``value`` is not within the limits."""
        if value is None and self.optional:
            return
        usable: bool = isinstance(value, self.kind) and not isinstance(value, bool)
        number = float(value) if usable else math.nan
        within = self.low < number < self.high if self.open else self.low <= number <= self.high
        if not (within and math.isfinite(number)):
            what = "an integer" if self.kind is Integral else "a number"
            least, most = ("above", "below") if self.open else ("of at least", "at most")
            upper = "" if self.high == math.inf else f" and {most} {self.high:g}"
            none = ", or None for the default" if self.optional else ""
            raise ValueError(f"{name}={value!r} must be {what} {least} {self.low:g}{upper}{none}.")


LIMITS = {
    "n_estimators": Limits(Integral, 1),
    "latent_dim": Limits(Integral, 1, optional=True),
    "beta": Limits(Real, 0),
    "min_scale": Limits(Real, 0, open=True),
    "n_mc": Limits(Integral, 1),
    "max_steps": Limits(Integral, 1, optional=True),
    "batch_size": Limits(Integral, 1, optional=True),
    "learning_rate": Limits(Real, 0, open=True, optional=True),
    "weight_decay": Limits(Real, 0),
    "warmup": Limits(Real, 0, 1),
    "patience": Limits(Real, 0),
    "robust": Limits(Real, 0, 0.49),
    "rank_share": Limits(Real, 0, 0.95),
    "tile": Limits(Integral, 8, optional=True),
    "shift": Limits(Integral, 0),
    "brightness": Limits(Real, 0, 1),
}


def check_params(params: Mapping[str, Any]) -> None:
    """ValueError with a sentence for the first parameter of a VAEDetector that can't be used."""
    look_up("likelihood", params["likelihood"], {**LIKELIHOODS, "auto": None})
    look_up("prior", params["prior"], PRIORS)
    look_up("net", params["net"], {**NETS, "auto": None})
    look_up("score", params["score_name"], {**SCORES, "auto": None})
    look_up("threshold", params["threshold"], THRESHOLDS)
    check_fpr(params["fpr"])
    _check_backbone(params["backbone"], params["backbone_weights"])
    for name, limits in LIMITS.items():
        limits.check(name, params[name])
    hidden, categorical, flips = params["hidden"], params["categorical_features"], params["flips"]
    if not (_is_sequence(hidden) and all(map(_is_width, hidden))):
        raise ValueError(f"hidden={hidden!r} must hold positive integers, the widths of the layers.")
    if not _is_sequence(categorical):
        raise ValueError(f"categorical_features={categorical!r} must be a sequence of column names.")
    if not (_is_sequence(flips) and all(flip in tuple(FLIPS) for flip in flips)):
        raise ValueError(f"flips={flips!r} must be a sequence of 'h' (left-right) and 'v' (upside-down).")
    look_up("precision", params["precision"], PRECISIONS)
    _check_random_state(params["random_state"])
    find_device(params["device"])


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _is_width(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def check_precision(precision: str, device: str | torch.device) -> None:
    """ValueError if this device can't train in this precision; a model that was trained in it scores anywhere."""
    fault = precision_fault(precision, find_device(device))
    if fault:
        raise ValueError(f"precision={precision!r}: {fault} Use 'auto'.")


def seed_of(random_state: Any) -> int:
    """Seed that ``random_state`` is or, if it is a RandomState or None for NumPy's own, gives; ValueError for others.

    Examples
    --------
    >>> seed_of(np.int64(3)), seed_of(np.random.RandomState(0)) == seed_of(np.random.RandomState(0))
    (3, True)
    """
    _check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _check_random_state(value: Any) -> None:
    usable = value is None or value is np.random or isinstance(value, np.random.RandomState)
    # What torch takes as a seed.
    if not (usable or (isinstance(value, Integral) and 0 <= int(value) < 2**64)):
        raise ValueError(f"random_state={value!r} must be an integer from 0 to 2**64 - 1, a RandomState or None.")


def _check_backbone(backbone: Any, weights: Any) -> None:
    if backbone is not None:
        look_up("backbone", backbone, {"auto": None, "pixels": None, **BACKBONES})
    known = BACKBONES.get(backbone)
    if weights is not None and not (known and known.learned):
        what = f"the backbone {backbone!r} has none that are learned" if known else "none is named"
        raise ValueError(f"backbone_weights={str(weights)!r} are weights for a backbone, and {what}.")


def device_fault(name: str) -> str:
    """Why this device can't be used, as a sentence; empty if it can.

    Examples
    --------
    >>> device_fault("cpu"), device_fault("abacus")
    ('', 'this machine has no such device.')
    """
    if name.partition(":")[0] == "mps":
        return "Apple's MPS has no double precision, in which scores are summed."
    try:
        # A tensor that can be read back: "meta" is a device, too.
        torch.zeros(1, device=None if name == "auto" else name).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        return "this machine has no such device."
    return ""


def find_device(name: str | torch.device) -> torch.device:
    """Device of this name, "auto" for CUDA where there is some; ValueError for one that can't be used."""
    if not isinstance(name, str | torch.device):
        raise ValueError(f"device={name!r} must be a name such as 'auto', 'cpu' or 'cuda', or a torch.device.")
    name = str(name)
    fault = device_fault(name)
    if fault:
        raise ValueError(f"device={name!r}: {fault} Use 'auto' or 'cpu'.")
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
