"""From the parameters of a detector and the shape of its data to networks, and to how they are trained."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_anomaly.augment import augment
from vae_anomaly.features import FeatureSchema
from vae_anomaly.likelihoods import LIKELIHOODS, Blocks, Likelihood
from vae_anomaly.picture import Picture
from vae_anomaly.pixels import ImageSchema, PixelSchema
from vae_anomaly.preprocessing import Schema
from vae_anomaly.scores import SCORES, scores_for
from vae_anomaly.scratch import blocks, empty_like_source
from vae_anomaly.splitting import Split
from vae_anomaly.training import Change, Plan
from vae_anomaly.vae import VAE

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = [
    "architecture",
    "augmentation",
    "build_vae",
    "check_score",
    "default_score",
    "find_backbone",
    "n_held_out_references",
    "n_references",
    "n_share_rows",
    "training_plan",
    "with_changed_copies",
]

# Rows that the references (samples to compare with, latent covariance, usual scores) are computed from.
MAX_REFERENCE_ROWS = 10_000
# Of rows that are seen as many samples each, any two samples are more alike, and there are more of them to score.
MAX_REFERENCE_PARTS = 5000
# Numbers that each member keeps of training rows: of wide rows, such as images, it keeps fewer.
MAX_REFERENCE_ENTRIES = 4_000_000
# Numbers that the draws for them take, in each of some ten tensors.
MAX_REFERENCE_DRAWS = 16_000_000
MIN_REFERENCE_ROWS = 20
# Held-out rows that usual shares of the columns are the mean of; each takes a gradient, or several draws. Of wide rows
# fewer, in smaller blocks: they would take longer than all else that comes after training.
MAX_SHARE_ROWS, MAX_SHARE_ENTRIES = 1000, 100_000
MIN_SHARE_ROWS, SHARE_BATCH = 100, 64
MAX_LATENT_DIM = 128
# Steps of training, and rows for each: a few rows come up hundreds of times, and each of ten million once. Batches grow
# only where one pass takes more steps than that.
MIN_STEPS, MAX_STEPS = 300, 6000
MIN_PASSES = 5
# Images need more of them than tables do.
MIN_IMAGE_STEPS = 1500
# Peak of the learning rate, and of that for few steps on a table: five times the steps at a third of the rate find
# nothing that these miss.
LEARNING_RATE, HIGH_LEARNING_RATE = 4e-3, 12e-3
MANY_STEPS = 1500
MIN_BATCH_SIZE, BATCH_SIZE = 64, 256
MAX_BATCH_GROWTH = 8
# Of few rows a pass takes so many batches, unless these get smaller than that: half the rows a step, for all it finds.
MIN_BATCHES, SMALL_BATCH_SIZE = 8, 128
# Wide rows in large batches make a step take long, and no fewer steps.
MAX_BATCH_ENTRIES = 150_000
# Images of more numbers than this are known by features of their patches, or get convolutional networks, unless named.
MAX_MLP_PIXELS = 4096
# Changed copies of each image, where it is known by its features and changes are asked for.
N_CHANGED_COPIES = 2
# What makes these features: it needs no file of weights.
AUTO_BACKBONE = "gabor"


def find_backbone(detector: "VAEDetector", shape: tuple[int, ...]) -> str | None:
    """Entry of ``BACKBONES`` that describes the patches of images of this shape; None where pixels are modelled.

    Convolutional networks, and likelihoods of numbers from 0 to 1, are for pixels: who names one wants pixels.
    """
    if detector.backbone != "auto":
        return None if detector.backbone == "pixels" else detector.backbone
    named = detector.net == "conv" or (
        detector.likelihood != "auto" and LIKELIHOODS[detector.likelihood].scaling == "unit"
    )
    return None if named or math.prod(shape) <= MAX_MLP_PIXELS else AUTO_BACKBONE


def default_score(schema: Schema | ImageSchema) -> str:
    """Score that "auto" stands for.

    Of images on pixels, parts that no training image has say more than what a decoder blurs. Of rows, and of patches
    described by a backbone, whether they are explained and whether one like them was seen find different anomalies.
    """
    return "patch_novelty" if isinstance(schema.core, PixelSchema) else "novelty"


def check_score(name: str, schema: Schema | ImageSchema) -> None:
    """ValueError for a score of images on pixels where there are none."""
    if name in SCORES and SCORES[name].images and not isinstance(schema.core, PixelSchema):
        features = isinstance(schema.core, FeatureSchema)
        raise ValueError(
            f"The score {name!r} is for images on pixels, and the model is one of "
            f"{'features; with backbone=pixels it would be one of pixels' if features else 'a table'}. "
            f"Use one of {', '.join(scores_for(images=False))}."
        )


def n_references(n_entries: int, n_parts: int) -> int:
    """Samples of so many entries that the references are computed from, where a row is seen as ``n_parts`` samples."""
    most = MAX_REFERENCE_ROWS if n_parts == 1 else MAX_REFERENCE_PARTS
    return max(2, min(most, MAX_REFERENCE_ENTRIES // n_entries))


def n_share_rows(n_entries: int, device: torch.device) -> tuple[int, int | None]:
    """Held-out rows of so many entries that usual shares are the mean of, and how many come at once, if not as ever.

    A GPU takes no longer for all of them than for some.

    Examples
    --------
    >>> [n_share_rows(n_entries, torch.device("cpu")) for n_entries in (30, 784)]
    [(1000, None), (127, 64)]
    """
    n_rows = min(MAX_SHARE_ROWS, max(MIN_SHARE_ROWS, MAX_SHARE_ENTRIES // n_entries))
    if n_rows == MAX_SHARE_ROWS:
        return n_rows, None
    return n_rows, n_rows if device.type == "cuda" else SHARE_BATCH


def n_held_out_references(n_entries: int, n_parts: int, n_mc: int) -> int:
    """Held-out samples on which usual scores are computed: some of these draw z ``n_mc`` times."""
    return min(n_references(n_entries, n_parts), max(MIN_REFERENCE_ROWS, MAX_REFERENCE_DRAWS // (n_entries * n_mc)))


def architecture(
    detector: "VAEDetector", schema: Schema | ImageSchema, x: torch.Tensor, split: Split
) -> dict[str, Any]:
    """Sizes of the networks for encoded rows ``x``, as plain data for the header of a model file."""
    n_entries, images = x.shape[1], isinstance(schema.core, PixelSchema)
    auto = "conv" if images and n_entries > MAX_MLP_PIXELS else "mlp"
    n_kept = min(split.train.shape[1], n_references(n_entries, schema.n_parts))
    return {
        "n_entries": n_entries,
        "latent_dim": int(detector.latent_dim or min(max(n_entries, 2), MAX_LATENT_DIM)),
        "mask_input": not images and _has_holes(x, split.fitted),
        "n_codes": max(1, round((1.0 - detector.robust) * n_kept)),
        "net": auto if detector.net == "auto" else detector.net,
    }


def _has_holes(x: torch.Tensor, rows: NDArray[np.intp]) -> bool:
    """Whether an entry of these rows is missing; a part of them at a time, as there may be millions."""
    parts = blocks(len(rows), x.shape[1])
    return any(bool(torch.isnan(x.index_select(0, torch.from_numpy(rows[part]))).any()) for part in parts)


def training_plan(detector: "VAEDetector", schema: Schema | ImageSchema, n_entries: int, n_rows: int) -> Plan:
    """How to train on ``n_rows`` rows a member."""
    images = isinstance(schema, ImageSchema)
    batch_size = int(detector.batch_size or _batch_size(n_entries, n_rows, images=images))
    steps_per_epoch = max(1, n_rows // batch_size)
    least = MIN_IMAGE_STEPS if images else MIN_STEPS
    n_steps = int(detector.max_steps or min(max(least, MIN_PASSES * steps_per_epoch), MAX_STEPS))
    return Plan(
        n_steps,
        batch_size=batch_size,
        learning_rate=float(detector.learning_rate or _learning_rate(n_steps, images=images)),
        weight_decay=detector.weight_decay,
        beta=detector.beta,
        warmup=detector.warmup,
        patience=detector.patience,
        robust=detector.robust,
        precision=detector.precision,
        change=augmentation(detector, schema),
    )


def _learning_rate(n_steps: int, *, images: bool) -> float:
    """Peak of the one-cycle schedule: higher, on a table, for fewer steps."""
    if images:
        return LEARNING_RATE
    steepness = math.log(HIGH_LEARNING_RATE / LEARNING_RATE) / math.log(MANY_STEPS / MIN_STEPS)
    rate = LEARNING_RATE * math.pow(MANY_STEPS / n_steps, steepness)
    return min(max(rate, LEARNING_RATE), HIGH_LEARNING_RATE)


def _batch_size(n_entries: int, n_rows: int, *, images: bool) -> int:
    usual = min(BATCH_SIZE, max(MIN_BATCH_SIZE, MAX_BATCH_ENTRIES // n_entries))
    if not images:
        usual = min(usual, max(SMALL_BATCH_SIZE, n_rows // MIN_BATCHES))
    return max(usual, min(MAX_BATCH_GROWTH * usual, math.ceil(n_rows / MAX_STEPS)))


def augmentation(detector: "VAEDetector", schema: Schema | ImageSchema) -> Change | None:
    """What is done to rows of scaled pixels before they are learned from; None if nothing was asked for."""
    asked: dict[str, Any] = {name: getattr(detector, name) for name in ("flips", "shift", "brightness")}
    if not any(asked.values()):
        return None
    schema = schema.core
    if isinstance(schema, FeatureSchema):
        # Features can't be changed like pixels; see `with_changed_copies`.
        return None
    if not isinstance(schema, PixelSchema):
        raise ValueError("flips, shift and brightness are for images, of shape (n_samples, channels, height, width).")
    shape = schema.shape
    center, scale = (torch.tensor(part, dtype=torch.float32)[:, None, None] for part in (schema.center, schema.scale))

    def change(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = rows.reshape(-1, *shape) * scale.to(rows) + center.to(rows)
        changed = augment(images, generator, **asked)
        return ((changed - center.to(rows)) / scale.to(rows)).reshape(rows.shape)

    return change


def with_changed_copies(
    detector: "VAEDetector",
    schema: Schema | ImageSchema,
    images: Any,
    encoded: NDArray[np.float32],
    split: Split,
    generator: torch.Generator,
) -> tuple[NDArray[np.float32], Split]:
    """Rows of features, and after them those of changed copies of the images, which train whom the images train.

    Features take too long to be made anew for each step. Rows to watch and to calibrate with are of unchanged images.
    """
    asked: dict[str, Any] = {name: getattr(detector, name) for name in ("flips", "shift", "brightness")}
    if not (isinstance(schema.core, FeatureSchema) and any(asked.values())):
        return encoded, split
    n, d = encoded.shape
    rows = empty_like_source(encoded, ((1 + N_CHANGED_COPIES) * n, d))
    for block in blocks(n, d):
        rows[block] = encoded[block]
        for copy in range(1, 1 + N_CHANGED_COPIES):
            changed = augment(torch.from_numpy(images[block]), generator, **asked).numpy()
            rows[copy * n + block.start : copy * n + block.stop] = schema.encode(changed)
    train = torch.cat([split.train + copy * n for copy in range(1 + N_CHANGED_COPIES)], dim=1)
    return rows, replace(split, train=train)


def build_vae(
    detector: "VAEDetector",
    schema: Schema | ImageSchema,
    sizes: dict[str, Any],
    generator: torch.Generator | None,
) -> VAE:
    """One member, without weights worth the name if ``generator`` is None."""
    schema, shape = schema.core, (sizes["n_entries"],)
    blocks = Blocks(*schema.block_sizes())
    kind = "gaussian" if blocks.n_binary == 0 and not blocks.categories else "mixed"
    name = kind if detector.likelihood == "auto" else detector.likelihood
    floors = _floors(schema, name, detector.min_scale)
    likelihood: Likelihood = LIKELIHOODS[name](shape, blocks, min_scale=floors)
    return VAE(
        shape,
        sizes["latent_dim"],
        likelihood=likelihood,
        prior=detector.prior,
        hidden=detector.hidden,
        image_shape=schema.shape if isinstance(schema, PixelSchema) and sizes["net"] == "conv" else None,
        picture=Picture(schema.shape, schema.center, schema.scale) if isinstance(schema, PixelSchema) else None,
        mask_input=sizes["mask_input"],
        n_codes=sizes["n_codes"],
        generator=generator,
    )


def _floors(schema: Schema | ImageSchema, likelihood: str, min_scale: float) -> float | list[float]:
    """Floor under the scale of each real entry.

    A value that was rounded is not known to less than half a step, whatever the decoder thinks.
    """
    steps = schema.resolutions()
    if likelihood == "gaussian_shared" or not steps.any():
        return min_scale
    floors: list[float] = np.clip(0.5 * steps, min_scale, max(1.0, min_scale)).tolist()
    return floors
