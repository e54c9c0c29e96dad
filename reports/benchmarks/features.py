"""Pixels against features of patches on drawn photographs of surfaces and parts: image and pixel figures, and time.

    python reports/benchmarks/features.py
    python reports/benchmarks/features.py --scenes cloth gear --methods default pixels-mlp
    python reports/benchmarks/features.py --numbers 60 20 3 --set max_steps=800 --scores novelty nearest_neighbour
    python reports/benchmarks/features.py --table

Each scene of `made_images.py` gives 80 good images to train on, 30 good ones and four of each kind of defect to test
with. No method sees a defect before the test, and all scenes have one configuration. --set changes parameters of the
detector, or constants of a module, as in `features.PLACE_WEIGHT=2`.

Each run adds one JSON line to --runs; what stands there already is not run again. --table runs nothing and turns these
lines into a Markdown file beside them.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from made_images import DEFECTS, SCENES, made
from records import append, constants, heading_lines, machines, provenance, read_runs, setting, table_line, write_page
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector
from vae_anomaly.errors import CalibrationWarning
from vae_anomaly.pixel_metrics import evaluate_pixels

HERE = Path(__file__).parent
DEFAULT = "default"
RATES = ("good flagged, 5 % asked", "defects flagged")

METHODS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "resnet18-random": {"backbone": "resnet18"},
    "pixels-mlp": {"backbone": "pixels", "net": "mlp"},
    "pixels-conv": {"backbone": "pixels", "net": "conv"},
}


class Images(NamedTuple):
    """Images of a scene, and what is known about those to test with."""

    train: np.ndarray
    test: np.ndarray
    kinds: list[str]
    """Kind of the defect, empty for a good image."""
    masks: np.ndarray


def images_of(scene: str, seed: int, n_train: int = 80, n_good: int = 30, n_each: int = 4) -> Images:
    """Images of a scene as the detector takes them, with channels in front."""
    first = 10_000 * seed
    kinds = [""] * n_good + [kind for kind in DEFECTS for _ in range(n_each)]
    test = [made(scene, first + 5_000 + index, kind or None) for index, kind in enumerate(kinds)]
    train = np.stack([made(scene, first + index)[0] for index in range(n_train)])
    shown = np.stack([image for image, _ in test])
    return Images(np.moveaxis(train, -1, 1), np.moveaxis(shown, -1, 1), kinds, np.stack([mask for _, mask in test]))


def fitted(parameters: dict[str, Any], images: np.ndarray) -> VAEDetector:
    """Detector with a network of random weights where it asks for one."""
    with ExitStack() as stack:
        if parameters.get("backbone", "").startswith("resnet"):
            from torchvision.models import get_model

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                weights = get_model(parameters["backbone"], weights=None).state_dict()
            stack.enter_context(patch("vae_anomaly.detector.download_weights", lambda name: weights))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", CalibrationWarning)
        return VAEDetector(**parameters).fit(images)


def measure(detector: VAEDetector, images: Images, score_name: str | None) -> dict[str, Any]:
    """Figures of one score on one scene."""
    started = time.perf_counter()
    scores = detector.anomaly_score(images.test, score_name=score_name)
    score_seconds = time.perf_counter() - started
    kinds = np.array(images.kinds)
    good = scores[kinds == ""]

    def area(chosen: np.ndarray) -> float:
        bad = scores[chosen]
        return float(roc_auc_score(np.repeat([0, 1], [len(good), len(bad)]), np.concatenate([good, bad])))

    maps = (detector.explain(image[None], score_name=score_name)[0].sum(axis=0) for image in images.test)
    found = evaluate_pixels(zip(maps, images.masks, strict=True))
    assert found is not None
    # Another score than the detector's own has no threshold.
    flagged = (
        {}
        if score_name
        else {
            "good_flagged": float((good > detector.threshold_).mean()),
            "defects_flagged": float((scores[kinds != ""] > detector.threshold_).mean()),
        }
    )
    return {
        "roc_auc": area(kinds != ""),
        "by_kind": {kind: area(kinds == kind) for kind in DEFECTS},
        "pixel_roc_auc": found.roc_auc,
        "aupro": found.aupro,
        **flagged,
        "score_seconds_per_image": round(score_seconds / len(scores), 4),
        "n_train": len(images.train),
        "n_test": len(scores),
    }


def run_all(arguments: argparse.Namespace) -> None:
    """Do what is left to do, scene by scene."""
    changes = dict(arguments.set)
    parameters = {name: value for name, value in changes.items() if "." not in name}
    suffix = ", ".join(f"{name}={value!r}" for name, value in sorted(changes.items()))
    names = {name: f"{name} ({suffix})" if suffix else name for name in arguments.methods}
    done = {(run["scene"], run["seed"], run["method"]) for run in read_runs(arguments.runs)}
    for scene in arguments.scenes:
        for seed in arguments.seeds:
            left = [name for name in names if (scene, seed, names[name]) not in done]
            if not left:
                continue
            images = images_of(scene, seed, *arguments.numbers)
            for name in left:
                with constants(changes):
                    started = time.perf_counter()
                    detector = fitted({**METHODS[name], **parameters}, images.train)
                    seconds = round(time.perf_counter() - started, 2)
                    own = detector.score_name_
                    # The line without a score comes last: it says that all are there.
                    for score in (*(score for score in arguments.scores if score != own), None):
                        method = names[name] if score is None else f"{names[name]}, {score}"
                        run = {"scene": scene, "seed": seed, "method": method, "score": score or own}
                        run |= {**measure(detector, images, score), "fit_seconds": seconds, **provenance()}
                        append(arguments.runs, run)
                        print(
                            f"{scene}, seed {seed}, {method}: image {100 * run['roc_auc']:.1f}, pixel "
                            f"{100 * run['pixel_roc_auc']:.1f}, AUPRO {100 * run['aupro']:.1f}; fit {seconds:.0f} s",
                            flush=True,
                        )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown page."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    scenes = [scene for scene in SCENES if any(run["scene"] == scene for run in runs)]
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "# Features of patches on drawn photographs",
        "",
        f"{len(scenes)} scenes of 256 x 256 pixels in colour, {len(DEFECTS)} kinds of defects; seeds "
        f"{', '.join(map(str, seeds))}; percent.",
        "`features.py` says how the runs are made, `made_images.py` draws the images. Times are of a busy machine.",
        *machines(runs),
        "Means are over the scenes that a method ran on: where these differ, compare methods scene by scene.",
        "",
        *heading_lines(
            ("method", "scenes", "image ROC-AUC", "pixel ROC-AUC", "AUPRO", *RATES, "fit, s", "score, s an image")
        ),
    ]
    for method in methods:
        some = [run for run in runs if run["method"] == method]
        percent = ("roc_auc", "pixel_roc_auc", "aupro", "good_flagged", "defects_flagged")
        cells = [_mean(runs, what, method=method) for what in percent]
        times = [f"{fmean(run[what] for run in some):.2g}" for what in ("fit_seconds", "score_seconds_per_image")]
        lines.append(table_line([method, str(len({run["scene"] for run in some})), *cells, *times]))
    for what, title in (("roc_auc", "Image ROC-AUC"), ("pixel_roc_auc", "Pixel ROC-AUC"), ("aupro", "AUPRO")):
        lines += ["", f"## {title}", "", *heading_lines(["scene", *methods])]
        for scene in scenes:
            lines.append(table_line([scene, *(_mean(runs, what, scene=scene, method=method) for method in methods)]))
    lines += ["", "## Image ROC-AUC by kind of defect", "", *heading_lines(["defect", *methods])]
    by_kind = [{**run, **run["by_kind"]} for run in runs]
    for kind in DEFECTS:
        lines.append(table_line([kind, *(_mean(by_kind, kind, method=method) for method in methods)]))
    return "\n".join(lines) + "\n"


def _mean(runs: Sequence[dict[str, Any]], what: str, **wanted: str) -> str:
    some = [run[what] for run in runs if what in run and all(run[name] == value for name, value in wanted.items())]
    return f"{100 * fmean(some):.1f}" if some else "-"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[DEFAULT])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", type=setting, nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--numbers", type=int, nargs=3, default=(80, 30, 4), metavar="N", help="to train, good, of each kind"
    )
    parser.add_argument("--scores", nargs="+", default=[], metavar="NAME", help="further scores of the same fits")
    parser.add_argument("--runs", type=Path, default=HERE / "features.jsonl")
    parser.add_argument("--table", action="store_true", help="write the page of the runs, and run nothing")
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence to set below the title")
    arguments = parser.parse_args(argv)
    if not arguments.table:
        run_all(arguments)
        return
    write_page(arguments.runs, table, arguments.note)


if __name__ == "__main__":
    main()
