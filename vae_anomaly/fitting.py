"""An ensemble learned from encoded rows, and what it makes of rows that it did not learn from."""

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import PosteriorCollapseWarning
from vae_anomaly.memory import fits
from vae_anomaly.objective import has_holes
from vae_anomaly.parameters import find_device
from vae_anomaly.patches import patch_distances
from vae_anomaly.planning import architecture, build_vae, n_held_out_references, n_references, training_plan
from vae_anomaly.products import multiplied
from vae_anomaly.row_hashes import all_hashes, sketch
from vae_anomaly.scores import AVERAGED, IMAGE_REFERENCES, PATCH_REFERENCES, REFERENCES
from vae_anomaly.scoring import IMPUTATION_STEPS, block_size, by_blocks, map_folds, map_rows
from vae_anomaly.scratch import blocks, on_disk
from vae_anomaly.splitting import Split, leave_out_entries
from vae_anomaly.streaming import RowsOnDisk, rows_of
from vae_anomaly.training import History, OnCheck, active_units, train

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["Fitted", "fingerprint_of", "fit_ensemble", "generator_of", "map_calibration", "marks_of"]

Floats = NDArray[np.float64]

# Numbers of rows that are hashed at a time: what is made of them is still in the cache.
HASHED = 500_000


class Fitted(NamedTuple):
    """What training leaves."""

    ensemble: Ensemble
    eps: torch.Tensor
    """Base samples of all scores, shape (n_mc, 1, latent_dim)."""
    architecture: dict[str, Any]
    history: History
    active_units: NDArray[np.int64]
    """Number of latent variables in use, of each member."""


def generator_of(seed: int, member: int) -> torch.Generator:
    """Generator of one member, independent of those of its siblings."""
    state = np.random.SeedSequence([seed, member]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def fit_ensemble(
    detector: "VAEDetector",
    encoded: NDArray[np.float32],
    split: Split,
    generators: list[torch.Generator],
    on_check: OnCheck | None,
) -> Fitted:
    """Members by the parameters and the schema of a detector, which stays as it is.

    Parameters
    ----------
    detector : VAEDetector
    encoded : ndarray of shape (n_samples, n_entries)
    split : Split
    generators : list of torch.Generator
        One for each member and one for all.
    on_check : callable, optional
        Told of the progress.
    """
    device, schema, n_parts = find_device(detector.device), detector.schema_, detector.schema_.n_parts
    encoded, split = encoded.reshape(len(encoded) * n_parts, -1), split.parts(n_parts, generators[:-1])
    x = torch.from_numpy(encoded)
    moved = _moved(encoded, device)
    rest = torch.from_numpy(split.fitted)
    built = architecture(detector, schema, x, split)
    members = [build_vae(detector, schema, built, generator) for generator in generators[:-1]]
    for member, generator in zip(members, generators, strict=False):
        some = rest[torch.randint(len(rest), (member.prior.n_components,), generator=generator)]
        member.prior.start_from(x[some])
    # One by one: a GPU stacks in no time what takes a processor longer than all else before the first step.
    ensemble = Ensemble([member.to(device) for member in members])
    eps = torch.randn(detector.n_mc, 1, built["latent_dim"], generator=generators[-1])
    x = moved()
    train_rows, held_out_rows = split.train.to(device), split.held_out.to(device)
    plan = training_plan(detector, schema, x.shape[1], train_rows.shape[1])
    history = train(ensemble, x, train_rows, held_out_rows, plan, generators[:-1], on_check)
    compared = leave_out_entries(x.shape[1], ensemble.n_estimators, generators[-1])
    ensemble.buffers["compared"] = compared.to(device)
    few = n_references(x.shape[1], n_parts)
    fewer = n_held_out_references(x.shape[1], n_parts, detector.n_mc)
    imputation_steps = IMPUTATION_STEPS if built["mask_input"] else 0
    with multiplied(device):
        shown, watched = rows_of(x, train_rows[:, :few]), rows_of(x, held_out_rows[:, :fewer])
        units = _fill_references(ensemble, shown, watched, eps.to(device), imputation_steps)
    return Fitted(ensemble, eps, built, history, units)


def _moved(encoded: NDArray[np.float32], device: torch.device) -> Callable[[], torch.Tensor]:
    """Begin to move rows to where the networks will be; the function waits until they are there."""
    if on_disk(encoded) or not fits(encoded.nbytes, device):
        # What does not fit stays where it is, and answers to the same indices.
        return lambda: cast(torch.Tensor, RowsOnDisk(encoded, device))
    x = torch.from_numpy(encoded)
    if device.type != "cuda":
        return lambda: x.to(device)
    # Not by `workers.beside`, whose threads hash rows meanwhile. Which GPU is meant where none is named is a matter of
    # each thread.
    mover, place = ThreadPoolExecutor(1), torch.empty(0, device=device).device
    moved = mover.submit(x.to, place)
    mover.shutdown(wait=False)
    return moved.result


@torch.no_grad()
def _fill_references(
    ensemble: Ensemble, train_x: torch.Tensor, held_out_x: torch.Tensor, eps: torch.Tensor, imputation_steps: int
) -> NDArray[np.int64]:
    """Give members what their scores are compared with; how many of their latent variables are in use."""
    complete = not (has_holes(train_x) or has_holes(held_out_x))
    told = ensemble.told(complete=complete, imputation_steps=imputation_steps)

    def fill(reference: Callable[..., Any], *rows: torch.Tensor, shared: Sequence[torch.Tensor] = ()) -> None:
        dims = (*(0 for _ in rows), *(None for _ in shared))
        filled = told.map(reference, *rows, *shared, in_dims=dims)
        for name in filled.keys() & set(AVERAGED):
            # A fold of a small table says little about where scores usually lie; all folds together say more.
            filled[name] = filled[name].mean(dim=0, keepdim=True).expand_as(filled[name])
        # As a model file gives them back: a product with a transposed matrix may differ in the last bit.
        told.buffers.update({name: values.contiguous() for name, values in filled.items()})

    for reference in (*REFERENCES, *(IMAGE_REFERENCES if told.skeleton.picture else ())):
        fill(reference, train_x, held_out_x, shared=[eps])
    if told.skeleton.picture:
        # To find the nearest patches takes long, and both ask how far they are.
        distances = told.map(patch_distances, held_out_x, in_dims=(0,))
        for reference in PATCH_REFERENCES:
            fill(reference, held_out_x, *distances)
    units: NDArray[np.int64] = told.map(active_units, train_x, in_dims=(0,)).cpu().numpy()
    if (units == 0).any():
        warnings.warn(
            f"Posterior collapse: {int((units == 0).sum())} of {len(units)} members ignore "
            "their latent variables, so they see each column on its own. Lower beta or raise warmup.",
            PosteriorCollapseWarning,
            stacklevel=4,
        )
    return units


def map_calibration(
    ensemble: Ensemble,
    eps: torch.Tensor,
    function: Callable[..., torch.Tensor],
    encoded: NDArray[np.float32],
    split: Split,
    *,
    n_parts: int,
    at_once: int | None = None,
) -> Floats:
    """``function`` of the calibration rows, each by the members that did not see it; as :func:`map_rows`."""
    if split.aside is not None:
        return by_blocks(
            lambda part: map_rows(ensemble, eps, function, part, n_parts=n_parts, at_once=at_once),
            encoded,
            split.aside,
            n_parts,
        )
    folds, n_entries = split.held_out.numpy(), encoded.shape[1]
    parts = blocks(folds.shape[1], len(folds) * n_entries, multiple=block_size(n_entries, n_parts))
    found = [
        map_folds(ensemble, eps, function, encoded[folds[:, part]], n_parts=n_parts, at_once=at_once) for part in parts
    ]
    results = np.concatenate(found, axis=1)
    return results[: split.n_folds].reshape(-1, *results.shape[2:])


def fingerprint_of(encoded: NDArray[np.float32], unwanted: threading.Event) -> str:
    """By what the rows of a fit are known again, all of them together."""
    fingerprint = hashlib.sha256()
    for part in blocks(*encoded.shape):
        fingerprint.update(np.ascontiguousarray(_wanted(encoded[part], unwanted)).data)
    return fingerprint.hexdigest()


def marks_of(encoded: NDArray[np.float32], split: Split, unwanted: threading.Event) -> dict[str, NDArray[np.uint64]]:
    """The same of each of them, by what it is for."""
    parts = list(blocks(len(encoded), encoded.shape[1], at_once=HASHED)) or [slice(0)]
    found = [all_hashes(_wanted(encoded[part], unwanted)) for part in parts]
    hashes, known = (np.concatenate(values) for values in zip(*found, strict=True))

    def of(rows: NDArray[np.intp]) -> NDArray[np.uint64]:
        return sketch(hashes[rows][known[rows]])

    return {"training": of(split.fitted), "calibration": of(split.calibration), "labels": sketch(hashes[:0])}


def _wanted(part: NDArray[np.float32], unwanted: threading.Event) -> NDArray[np.float32]:
    """A part of the rows, so that nobody who wants to know no more has to wait for all of them."""
    if unwanted.is_set():
        raise CancelledError
    return part
