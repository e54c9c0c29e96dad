"""What a detector is to be fitted on -> how it is encoded: as its parameters say, by the training rows alone."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.backbones import BACKBONES, build_extractor
from vae_anomaly.errors import CellError
from vae_anomaly.features import FeatureSchema
from vae_anomaly.in_parts import TableInParts
from vae_anomaly.inputs import Table
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.parameters import find_device
from vae_anomaly.pixels import ImageSchema, PixelSchema
from vae_anomaly.planning import find_backbone
from vae_anomaly.preprocessing import Schema
from vae_anomaly.pretrained import download_weights, read_weights
from vae_anomaly.tiles import TileSchema, check_tile, some_tiles

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["check_table", "infer_schema"]


def check_table(detector: "VAEDetector", table: Table) -> None:
    """ValueError if a parameter names columns that are not there, or tiles that can't be cut."""
    _check_categorical(detector, table)
    _check_tile(detector, table)


def _check_categorical(detector: "VAEDetector", table: Table) -> None:
    columns = () if isinstance(table, np.ndarray) else table.columns
    unknown = sorted(set(map(str, detector.categorical_features)) - set(map(str, columns)))
    if unknown:
        raise ValueError(f"categorical_features names {unknown[0]!r}, and X has no such column.")


def _check_tile(detector: "VAEDetector", table: Table) -> None:
    if detector.tile is None:
        return
    if not isinstance(table, np.ndarray):
        raise ValueError(f"tile={detector.tile} is for images, of shape (n_samples, channels, height, width).")
    check_tile(table.shape[1:], detector.tile)


def infer_schema(detector: "VAEDetector", table: Table, rows: NDArray[np.intp]) -> Schema | ImageSchema:
    """Schema of the training rows alone.

    Were the calibration rows among them, no value of theirs could ever be an unseen one, and new rows would look
    less normal than they do.
    """
    kind = LIKELIHOODS["mixed" if detector.likelihood == "auto" else detector.likelihood]
    if isinstance(table, np.ndarray):
        if kind.columns == "categories":
            raise ValueError(f"likelihood={detector.likelihood!r} describes categories, and pixels are numbers.")
        if detector.tile is None:
            return _image_schema(detector, table, rows, kind.scaling)
        shown = some_tiles(table, rows, detector.tile, detector.seed_)
        of_tiles = _image_schema(detector, shown, np.arange(len(shown)), kind.scaling)
        channels, height, width = table.shape[1:]
        return TileSchema((channels, height, width), of_tiles)
    if detector.backbone not in (None, "auto"):
        raise ValueError(
            f"backbone={detector.backbone!r} is for images, of shape (n_samples, channels, height, width)."
        )
    if detector.net == "conv":
        raise ValueError("net='conv' is for images, of shape (n_samples, channels, height, width).")
    known, rows = table.known(rows) if isinstance(table, TableInParts) else (table.iloc[rows], rows)
    try:
        return Schema.infer(
            known,
            kinds=kind.columns,
            scaling=kind.scaling,
            categorical=detector.categorical_features,
            rank_share=detector.rank_share,
        )
    except CellError as error:
        raise CellError(int(rows[error.row]), error.detail) from None


def _image_schema(
    detector: "VAEDetector", images: NDArray[np.float32], rows: NDArray[np.intp], scaling: str
) -> PixelSchema | FeatureSchema:
    backbone = find_backbone(detector, images.shape[1:])
    if backbone is not None:
        return _feature_schema(detector, images, rows, backbone, scaling)
    return PixelSchema.infer(images, scaling=scaling, rows=rows)


def _feature_schema(
    detector: "VAEDetector", images: NDArray[np.float32], rows: NDArray[np.intp], backbone: str, scaling: str
) -> FeatureSchema:
    if scaling == "unit":
        raise ValueError(f"likelihood={detector.likelihood!r} describes pixels from 0 to 1, and features are none.")
    if detector.net == "conv":
        raise ValueError("net='conv' is for pixels, and with a backbone the networks see single patches.")
    weights = None
    if BACKBONES[backbone].learned:
        file = detector.backbone_weights
        weights = download_weights(backbone) if file is None else read_weights(file)
    extractor = build_extractor(backbone, images.shape[1], seed=detector.seed_, weights=weights)
    extractor.to(find_device(detector.device))
    return FeatureSchema.of(images, backbone, extractor, rows=rows)
