"""A fitted detector as plain data and arrays, and back: what goes into a model file."""

import math
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import vae_anomaly
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import ModelFileError, look_up
from vae_anomaly.features import FeatureSchema
from vae_anomaly.groups import Groups
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.likelihoods import Blocks, Categorical
from vae_anomaly.parameters import check_params
from vae_anomaly.persistence import load_model, save_model
from vae_anomaly.pixels import ImageSchema, PixelSchema
from vae_anomaly.planning import build_vae
from vae_anomaly.preprocessing import REMARKS, Schema
from vae_anomaly.row_hashes import check_sketch
from vae_anomaly.tails import MIN_EXCESSES, Extrapolation
from vae_anomaly.thresholds import THRESHOLDS, check_fpr
from vae_anomaly.tiles import TileSchema
from vae_anomaly.training import History

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["restore", "save"]

ROW_KINDS = ("training", "calibration", "labels")
# What a column of each kind may hold, and how many values it names.
COLUMN_TYPES = {
    "real": ("float", "int", "bool"),
    "binary": ("float", "int", "bool", "text"),
    "categorical": ("text",),
    "ignored": ("float", "text"),
}
COLUMN_KINDS = {"real": (0, 0), "binary": (1, 2), "categorical": (1, math.inf), "ignored": (0, 0)}
LIBRARIES = ("torch", "scikit-learn", "pandas", "numpy", "safetensors")


def save(detector: "VAEDetector", path: str | os.PathLike[str], notes: dict[str, Any]) -> None:
    """Write the detector's state to a model file."""
    tensors = {f"ensemble.{name}": _array(value) for name, value in detector.ensemble_.tensors().items()}
    tensors |= {f"history.{field.name}": getattr(detector.history_, field.name) for field in fields(History)}
    if isinstance(detector.schema_, ImageSchema):
        tensors |= {f"backbone.{name}": _array(value) for name, value in detector.schema_.tensors().items()}
    tensors["eps"] = _array(detector.eps_)
    tensors["calibration_scores"] = detector.calibration_scores_
    tensors |= {f"row_hashes.{kind}": detector.row_hashes_[kind] for kind in ROW_KINDS}
    tensors["calibration_groups"] = detector.groups_.codes if detector.groups_ else np.zeros(0, np.int64)
    tensors["usual_shares"] = detector.usual_shares_
    tensors["active_units"] = np.asarray(detector.active_units_)
    save_model(path, _header(detector, notes), tensors)


def _array(value: torch.Tensor) -> Any:
    return value.detach().cpu().numpy()


def _header(detector: "VAEDetector", notes: dict[str, Any]) -> dict[str, Any]:
    history = detector.history_
    return {
        # The device says where to fit next, and nothing of the model.
        "params": {name: _plain(value) for name, value in detector.fitted_params_.items()}
        | {"device": _plain(detector.device)},
        "score": detector.score_name_,
        "schema": detector.schema_.to_json(),
        "from_frame": detector.from_frame_,
        "named_features": hasattr(detector, "feature_names_in_"),
        "architecture": detector.architecture_,
        "threshold": {**detector.threshold_rule_, "value": detector.threshold_},
        "groups": _groups(detector),
        "training": {
            **{f"n_{name}": count for name, count in detector.n_rows_.items()},
            "n_parameters": sum(value.numel() for value in detector.ensemble_.params.values()),
            "epochs": float(history.epoch[-1]),
            "held_out_elbo": float(history.val_elbo[history.best].mean()),
            "held_out_reconstruction": float(history.val_reconstruction[history.best].mean()),
            "held_out_kl": float(history.val_kl[history.best].mean()),
            "active_units": [int(count) for count in detector.active_units_],
        },
        "n_calibration": len(detector.calibration_scores_),
        "fingerprint": detector.fingerprint_,
        "versions": {
            "vae-anomaly": vae_anomaly.__version__,
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
        "notes": notes,
    }


def _groups(detector: "VAEDetector") -> dict[str, Any] | None:
    groups = detector.groups_
    if groups is None:
        return None
    return {"column": groups.column, "names": list(groups.names), "thresholds": detector.group_thresholds_}


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's own, paths and devices as text, and sequences as lists, as JSON has them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    is_sequence = isinstance(value, Collection) and not isinstance(value, str | Mapping)
    return [_plain(inner) for inner in value] if is_sequence else value


def restore(kind: type["VAEDetector"], path: str | os.PathLike[str]) -> "VAEDetector":
    """Detector from a model file, on the CPU."""
    header, tensors = load_model(path)
    try:
        _check_finite(tensors)
        return _restore(kind, header, tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".") or "it asks for too much memory"
        raise ModelFileError(f"{os.path.basename(path)} does not hold a whole model: {what}.") from None


def _restore(kind: type["VAEDetector"], header: dict[str, Any], tensors: dict[str, Any]) -> "VAEDetector":
    params = header["params"]
    for name in ("hidden", "categorical_features", "flips"):
        params[name] = tuple(params[name])
    detector = kind(**params)
    # The device that it was fitted on need not be here.
    check_params({**detector.get_params(), "device": "cpu"})
    detector.schema_ = _schema(header["schema"], tensors)
    detector.architecture_ = header["architecture"]
    if not isinstance(params["random_state"], int):
        raise ValueError("its seed is no integer")
    detector.fitted_params_ = detector.get_params()
    detector.seed_, detector.fingerprint_ = params["random_state"], header["fingerprint"]
    state = _part(tensors, "ensemble.")
    _check_size(detector, state)
    # On the meta device a network has shapes and no memory: a file that asks for a giant one is refused, not built.
    with torch.device("meta"):
        skeleton = build_vae(detector, detector.schema_, detector.architecture_, None)
    detector.ensemble_ = Ensemble.from_tensors(
        skeleton, {name: torch.from_numpy(value) for name, value in state.items()}
    )
    _check_shapes(detector, tensors)
    detector.eps_ = torch.from_numpy(tensors["eps"])
    detector.history_ = _history(_part(tensors, "history."), detector.n_estimators)
    detector.calibration_scores_ = tensors["calibration_scores"]
    detector.row_hashes_ = {kind: check_sketch(tensors[f"row_hashes.{kind}"]) for kind in ROW_KINDS}
    detector.usual_shares_, detector.active_units_ = tensors["usual_shares"], tensors["active_units"]
    _restore_threshold(detector, header["threshold"])
    _restore_groups(detector, header["groups"], tensors["calibration_groups"])
    detector.n_rows_ = {name: header["training"][f"n_{name}"] for name in ("train", "calibration")}
    detector.notes_, detector.from_frame_ = header["notes"], bool(header["from_frame"])
    detector.n_features_in_ = detector.schema_.n_features
    if header["named_features"]:
        detector.feature_names_in_ = np.array([column.name for column in detector.schema_.columns], dtype=object)
    return detector


def _history(found: dict[str, Any], n_estimators: int) -> History:
    """History of the training, or ValueError if its parts do not fit each other."""
    history = History(**found)
    n_checks = history.epoch.size
    shapes = {"epoch": (n_checks,), "best": ()}
    for name, array in found.items():
        kind, shape = "i" if name == "best" else "f", shapes.get(name, (n_checks, n_estimators))
        if array.dtype.kind != kind or array.shape != shape:
            raise ValueError(f"tensor 'history.{name}' has shape {array.shape} and type {array.dtype}")
    if not 0 <= history.best < n_checks:
        raise ValueError("its history has no check that was the best")
    return history


def _part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _schema(found: Any, tensors: dict[str, Any]) -> Schema | ImageSchema:
    """A table has a list of columns, images have one shape, features a backbone, too, and tiles a schema of theirs."""
    if not isinstance(found, dict):
        for column in found:
            _check_column(column)
        return Schema.from_json(found)
    # Before a backbone is asked what it makes of an image of this size.
    if math.prod(found["shape"]) != tensors["usual_shares"].size:
        raise ValueError("its images have another size than its tensors")
    weights = {name: torch.from_numpy(value) for name, value in _part(tensors, "backbone.").items()}
    if "inner" in found:
        return TileSchema.restore(found, weights)
    return FeatureSchema.restore(found, weights) if "backbone" in found else PixelSchema.from_json(found)


def _check_column(column: Any) -> None:
    """Refuse what no table has: it would be found out by the first row that is scored, or when the model is saved."""
    if not isinstance(column, dict):
        raise ValueError("a column of its schema is none")
    texts = all(isinstance(column[name], str) for name in ("name", "kind", "dtype", "remark"))
    scales = all(_is_number(column[name]) for name in ("center", "scale", "resolution"))
    ends = all(column[name] is None or _is_number(column[name]) for name in ("low", "high"))
    maps = all(_is_list(column[name], _is_number) for name in ("knots", "bends"))
    if not (texts and scales and ends and maps):
        raise ValueError(f"column {column['name']!r} of its schema can't be used")
    kind, text = column["kind"], column["dtype"] == "text"
    if kind not in COLUMN_KINDS or column["dtype"] not in COLUMN_TYPES[kind] or column["remark"] not in ("", *REMARKS):
        raise ValueError(f"column {column['name']!r} of its schema is of no known kind")
    least, most = COLUMN_KINDS[kind]
    n_values = len(column["values"])
    if not (_is_list(column["values"], _is_text if text else _is_number) and least <= n_values <= most):
        raise ValueError(f"column {column['name']!r} of its schema has other values than its kind")


def _is_list(values: Any, usable: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(usable, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _restore_threshold(detector: "VAEDetector", found: dict[str, Any]) -> None:
    rule = {name: found[name] for name in ("name", "fpr", "out_of_fold", "parameters", "extrapolation", "labels")}
    look_up("threshold", rule["name"], dict.fromkeys([*THRESHOLDS, *LABEL_THRESHOLDS]))
    value = float(found["value"])
    if math.isnan(value):
        raise ValueError("its threshold is not a number")
    (_check_chosen if rule["name"] in LABEL_THRESHOLDS else _check_calibrated)(rule, value)
    detector.threshold_, detector.offset_, detector.threshold_rule_ = value, -value, rule


def _restore_groups(detector: "VAEDetector", found: dict[str, Any] | None, codes: Any) -> None:
    detector.groups_, detector.group_thresholds_ = None, {}
    if found is None:
        if codes.size:
            raise ValueError("its calibration scores have groups without names")
        return
    if not (isinstance(found["column"], str) and isinstance(found["thresholds"], dict)):
        raise ValueError("its groups have no name or no thresholds")
    groups = Groups(found["column"], tuple(found["names"]), codes)
    known = all(isinstance(name, str) for name in groups.names) and len(set(groups.names)) == len(groups.names)
    if codes.dtype != np.int64 or codes.shape != detector.calibration_scores_.shape:
        raise ValueError("not every calibration score has a group")
    if not (known and codes.min() >= -1 and codes.max() < len(groups.names) and (groups.counts() > 0).all()):
        raise ValueError("its groups are not those of its calibration scores")
    thresholds = {name: float(value) for name, value in found["thresholds"].items()}
    calibrated = detector.threshold_rule_["labels"] is None
    if thresholds.keys() != (set(groups.names) if calibrated else set()) or any(map(math.isnan, thresholds.values())):
        raise ValueError("its thresholds are not those of its groups")
    detector.groups_, detector.group_thresholds_ = groups, thresholds


def _check_calibrated(rule: dict[str, Any], value: float) -> None:
    """Refuse what a rule for normal rows could not have left."""
    check_fpr(rule["fpr"])
    if rule["labels"] is not None or rule["parameters"] != {}:
        raise ValueError(f"the threshold {rule['name']!r} has neither labels nor parameters")
    if rule["extrapolation"] is not None:
        if THRESHOLDS[rule["name"]].extrapolation is None:
            raise ValueError(f"the threshold {rule['name']!r} extrapolates nothing")
        _check_extrapolation(rule["extrapolation"], value)


def _check_chosen(rule: dict[str, Any], value: float) -> None:
    """Refuse what a rule for labelled rows could not have left."""
    parameters = rule["parameters"] | ({} if rule["fpr"] is None else {"fpr": check_fpr(rule["fpr"])})
    known = LABEL_THRESHOLDS[rule["name"]].parameters
    if parameters.keys() != known.keys() or not all(0 < number < math.inf for number in parameters.values()):
        raise ValueError(f"the threshold {rule['name']!r} has other parameters")
    labels = rule["labels"]
    if not (0 <= labels["normal_flagged"] <= labels["n_normal"] and labels["n_normal"] > 0):
        raise ValueError("the normal rows that its threshold was chosen on do not add up")
    if not (0 <= labels["anomalies_flagged"] <= labels["n_anomalies"] and labels["n_anomalies"] > 0):
        raise ValueError("the anomalies that its threshold was chosen on do not add up")


def _check_extrapolation(found: dict[str, Any], threshold: float) -> None:
    """Refuse an extrapolation whose numbers do not fit each other."""
    beyond = Extrapolation(**found)
    if not all(math.isfinite(value) for value in found.values()) or beyond.threshold != threshold:
        raise ValueError("its threshold is not that of its extrapolation")
    ordered = beyond.low <= threshold <= beyond.high and beyond.shape_low <= beyond.shape <= beyond.shape_high
    if not (ordered and beyond.level <= threshold and beyond.n_excesses >= MIN_EXCESSES):
        raise ValueError("an interval of its extrapolation does not hold its value")


def _check_size(detector: "VAEDetector", state: dict[str, Any]) -> None:
    """Refuse, before they are built, far more layers or categories than the file has tensors for."""
    if 4 * len(detector.hidden) > len(state):
        raise ValueError("its header has more layers than the file has tensors for")
    sizes = detector.schema_.block_sizes()[2]
    padded = state.get("likelihood.padded", np.zeros(0))
    if len(sizes) * max(sizes, default=0) * detector.n_estimators != (padded.size if sizes else 0):
        raise ValueError("its header has other categories than its tensors")
    if sizes:
        # An index from elsewhere would be found out by the first row that is scored.
        layout = dict(Categorical((sum(sizes),), Blocks(0, 0, tuple(sizes))).named_buffers())
        if any((state[f"likelihood.{name}"] != layout[name].numpy()).any() for name in ("owner", "padded")):
            raise ValueError("its categories lie elsewhere than its header says")


def _check_finite(tensors: dict[str, Any]) -> None:
    """Refuse numbers that no fit leaves: scores that are NaN would never be flagged, and infinite ones always."""
    for name, array in tensors.items():
        # The ends alone, as a NaN is both of them: in a sixth of the time, and without an array of truth values.
        if array.dtype.kind == "f" and array.size and not np.isfinite([array.min(), array.max()]).all():
            raise ValueError(f"tensor {name!r} holds a number that is not finite")


def _check_shapes(detector: "VAEDetector", tensors: dict[str, Any]) -> None:
    """Refuse parts that do not fit each other."""
    scores = tensors["calibration_scores"]
    wanted = {
        "eps": ((detector.n_mc, 1, detector.architecture_["latent_dim"]), np.float32),
        "usual_shares": ((detector.schema_.n_features,), np.float64),
        "active_units": ((detector.n_estimators,), np.int64),
        "calibration_scores": ((max(len(scores), 1),) if scores.ndim else (1,), np.float64),
    }
    for name, (shape, kind) in wanted.items():
        if tensors[name].shape != shape or tensors[name].dtype != kind:
            raise ValueError(
                f"tensor {name!r} has shape {tensors[name].shape} and type {tensors[name].dtype}, "
                f"the model needs {shape} and {np.dtype(kind)}"
            )
    if detector.ensemble_.n_estimators != detector.n_estimators:
        raise ValueError(
            f"it has {detector.ensemble_.n_estimators} members, and its header says {detector.n_estimators}"
        )
    for column in detector.schema_.columns:
        if not (math.isfinite(column.center) and math.isfinite(column.scale) and column.scale > 0):
            raise ValueError(f"column {column.name!r} has no usable scale")
        knots, bends = np.array(column.knots, dtype=float), np.array(column.bends, dtype=float)
        if knots.shape != bends.shape or not (np.isfinite(bends).all() and (np.diff(column.scaled(knots)) >= 0).all()):
            raise ValueError(f"column {column.name!r} has a map to ranks that falls")
