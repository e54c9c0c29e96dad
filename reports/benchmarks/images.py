"""Images: one digit against the others, digits against foreign images, and the classic model in nats and bits.

    python reports/benchmarks/images.py --mnist FOLDER --parts classes --seeds 0 1 2
    python reports/benchmarks/images.py --mnist FOLDER --parts classes --seeds 0 1 2 --max-steps 1
    python reports/benchmarks/images.py --mnist FOLDER --parts foreign density
    python reports/benchmarks/images.py --table

FOLDER holds MNIST's images and labels as IDX files (those of the training set, or the 10,000 of the test set).

`classes`: for each digit, 70 % of its images train; the others and all images of other digits test. `foreign`: 70 % of
all images train; the others test against images that are no digits, or digits no more. `density`: a held-out 30 %,
by the classic model (784-400-200-20, Bernoulli, Adam, batches of 128, 10 epochs) in nats, and by the discretised
logistic in bits per dimension.

`classes` with --max-steps 1 gives the figures of the default score in a fraction of the time: `patch_novelty` compares
images and asks no network, so they are the same to the last bit.

Each run adds one JSON line to --runs; what stands there already is not run again. --models keeps fitted models in a
folder and takes them from there. --table runs nothing and turns the lines into a Markdown page beside them.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from records import append, provenance, read_runs, write_page
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector, load
from vae_anomaly.baselines import make_baseline
from vae_anomaly.data.image_arrays import read_idx
from vae_anomaly.errors import CalibrationWarning

HERE = Path(__file__).parent
TRAIN_SHARE = 0.7
CLASS_SCORES = ("novelty", "nearest_neighbour", "neg_log_px_z", "path_statistics", "patch_error")
BASELINES = ("pca", "knn", "isolation_forest")
FOREIGN_SCORES = (
    "patch_novelty",
    "novelty",
    "nearest_neighbour",
    "neg_log_px_z",
    "neg_elbo",
    "typicality",
    "path_statistics",
    "likelihood_regret",
    "input_complexity",
    "patch_error",
)
# Test images of each kind among the foreign ones, and training images of all digits: some scores take their time.
MAX_FOREIGN = 500
FOREIGN_TRAIN = 3000
KEY = ("part", "task", "seed", "method")

Images = np.ndarray


def read_mnist(folder: Path) -> tuple[Images, np.ndarray]:
    """Images of shape (n, 1, 28, 28) and their labels."""
    files = sorted(path for path in folder.glob("*images-idx3-ubyte*"))
    if not files:
        raise SystemExit(f"--mnist {folder}: there is no file *images-idx3-ubyte[.gz].")
    arrays = read_idx(str(files[0]))
    if arrays.labels is None:
        raise SystemExit(f"--mnist {folder}: there are no labels beside {files[0].name}.")
    return arrays.images[:, None], arrays.labels.astype(int)


def split(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and the others."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    n_train = int(TRAIN_SHARE * len(rows))
    return shuffled[:n_train], shuffled[n_train:]


def fitted(name: str, train: Images, models: Path | None, **parameters: Any) -> tuple[VAEDetector, float]:
    """A detector, from the folder of models if it is there, and how long it took to fit."""
    file = None if models is None else models / f"{name}.safetensors"
    if file is not None and file.exists():
        detector = load(file)
        return detector, detector.notes_["fit_seconds"]
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        detector = VAEDetector(**parameters).fit(train)
    seconds = round(time.perf_counter() - started, 2)
    if file is not None:
        detector.save(file, notes={"fit_seconds": seconds})
    return detector, seconds


class Runs:
    """Lines that are there, and further ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = {tuple(run[name] for name in KEY) for run in read_runs(path)}

    def left(self, part: str, task: str, seed: int, methods: Sequence[str]) -> list[str]:
        """Methods without a line."""
        return [method for method in methods if (part, task, seed, method) not in self.done]

    def add(self, part: str, task: str, seed: int, method: str, **figures: Any) -> None:
        """Write a line, and say so."""
        self.done.add((part, task, seed, method))
        append(self.path, {"part": part, "task": task, "seed": seed, "method": method, **figures, **provenance()})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{part}: {task}, seed {seed}, {method}: {shown}", flush=True)


def classes(
    X: Images,
    y: np.ndarray,
    seed: int,
    runs: Runs,
    models: Path | None,
    *,
    digits: Sequence[int] = range(10),
    max_steps: int | None = None,
) -> None:
    """Each digit against the others."""
    own = "default" if max_steps is None else f"default (max_steps={max_steps})"
    for digit in digits:
        train, rest = split(np.flatnonzero(y == digit), seed)
        test = np.concatenate([rest, np.flatnonzero(y != digit)])
        is_odd = y[test] != digit
        task = f"digit {digit}"
        for method in runs.left("classes", task, seed, BASELINES):
            started = time.perf_counter()
            baseline = make_baseline(method).fit(X[train].reshape(len(train), -1) / 255.0)
            scores = -baseline.score_samples(X[test].reshape(len(test), -1) / 255.0)
            seconds = time.perf_counter() - started
            runs.add("classes", task, seed, method, roc_auc=roc_auc_score(is_odd, scores), score_seconds=seconds)
        # Of networks that have learned nothing there is nothing else to ask.
        methods = runs.left("classes", task, seed, (own, *(CLASS_SCORES if max_steps is None else ())))
        if not methods:
            continue
        name = f"digit-{digit}-seed-{seed}{'' if max_steps is None else f'-steps-{max_steps}'}"
        detector, seconds = fitted(name, X[train], models, max_steps=max_steps)
        for method in methods:
            started = time.perf_counter()
            scores = detector.anomaly_score(X[test], score_name=None if method == own else method)
            figures = {
                "roc_auc": float(roc_auc_score(is_odd, scores)),
                "fit_seconds": seconds,
                "score_seconds": round(time.perf_counter() - started, 2),
            }
            if method == own:
                figures["false_positive_rate"] = float((scores[~is_odd] > detector.threshold_).mean())
            runs.add("classes", task, seed, method, **figures)


def foreign_images(digits: Images, seed: int) -> Iterator[tuple[str, Images]]:
    """Images that are no digits, or digits no more, by name."""
    rng = np.random.default_rng(seed)
    yield "patches of photographs", _photographs(len(digits), rng)
    yield "rotated by 90 degrees", np.rot90(digits, axes=(2, 3)).copy()
    yield "inverted", 255 - digits
    noise = rng.normal(0.0, 40.0, digits.shape)
    yield "noised", (digits + noise).clip(0, 255).round().astype(np.uint8)
    yield "a quarter of the strokes erased", _erased(digits, rng)
    yield "blank", np.zeros_like(digits[:1]).repeat(len(digits), axis=0)


def _photographs(n: int, rng: np.random.Generator) -> Images:
    grey = [image.mean(axis=2) for image in load_sample_images().images]
    found = np.empty((n, 1, 28, 28), np.uint8)
    for index in range(n):
        image = grey[index % len(grey)]
        top, left = (rng.integers(0, side - 28) for side in image.shape)
        found[index, 0] = image[top : top + 28, left : left + 28].round()
    return found


def _erased(digits: Images, rng: np.random.Generator) -> Images:
    """Each digit without the quarter of its ink that is nearest to one of its inked pixels."""
    changed = digits.copy()
    for image in changed[:, 0]:
        rows, columns = np.nonzero(image > 100)
        centre = rng.integers(len(rows))
        distance = np.hypot(rows - rows[centre], columns - columns[centre])
        radius = np.quantile(distance, 0.25)
        y, x = np.mgrid[:28, :28]
        image[np.hypot(y - rows[centre], x - columns[centre]) <= radius] = 0
    return changed


def foreign(X: Images, y: np.ndarray, seed: int, runs: Runs, models: Path | None) -> None:
    """All digits against images that are none."""
    train, rest = split(np.arange(len(X)), seed)
    normal = X[rest[:MAX_FOREIGN]]
    others = dict(foreign_images(X[rest[MAX_FOREIGN : 2 * MAX_FOREIGN]], seed))
    methods = [*FOREIGN_SCORES, *BASELINES]
    if not any(runs.left("foreign", task, seed, methods) for task in others):
        return
    detector, seconds = fitted(f"digits-seed-{seed}", X[train[:FOREIGN_TRAIN]], models)
    for method in methods:
        tasks = [task for task in others if runs.left("foreign", task, seed, [method])]
        if not tasks:
            continue
        score = _scorer(method, detector, X[train[:FOREIGN_TRAIN]])
        usual = score(normal)
        for task in tasks:
            scores = score(others[task])
            labels = np.repeat([0, 1], [len(usual), len(scores)])
            area = float(roc_auc_score(labels, np.concatenate([usual, scores])))
            figures = {} if method in BASELINES else {"fit_seconds": seconds}
            runs.add("foreign", task, seed, method, roc_auc=area, **figures)


def _scorer(method: str, detector: VAEDetector, train: Images) -> Callable[[Images], np.ndarray]:
    if method not in BASELINES:
        return lambda images: detector.anomaly_score(images, score_name=method)
    baseline = make_baseline(method).fit(train.reshape(len(train), -1) / 255.0)
    return lambda images: -baseline.score_samples(images.reshape(len(images), -1) / 255.0)


def density(X: Images, y: np.ndarray, seed: int, runs: Runs, models: Path | None) -> None:
    """The classic model after ten epochs, on held-out images."""
    train, rest = split(np.arange(len(X)), seed)
    # One member trains on nine tenths of what is not set aside for the threshold.
    n_steps = 10 * (int(0.9 * (len(train) - 1000)) // 128)
    classic = {"hidden": (400, 200), "latent_dim": 20, "batch_size": 128, "n_estimators": 1}
    for likelihood, unit, per in (
        ("bernoulli", "nats", 1.0),
        ("discretised_logistic", "bits_per_dimension", 784 * np.log(2.0)),
    ):
        for score in ("neg_elbo", "neg_log_px"):
            task = f"{likelihood}, {score}"
            if not runs.left("density", task, seed, ("classic",)):
                continue
            detector, seconds = fitted(
                f"{likelihood}-seed-{seed}", X[train], models, likelihood=likelihood, max_steps=n_steps, **classic
            )
            value = float(detector.anomaly_score(X[rest], score_name=score).mean() / per)
            runs.add("density", task, seed, "classic", **{unit: value, "fit_seconds": seconds})


PARTS: dict[str, Callable[..., None]] = {"classes": classes, "foreign": foreign, "density": density}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown page."""
    said = sorted({f"{', '.join(f'{k} {v}' for k, v in run['versions'].items())}" for run in runs})
    lines = ["# Images", "", "ROC-AUC in percent, means over the seeds; `images.py` makes these tables.", *said]
    headings = {
        "classes": "## One digit against the others\n\n70 % of the images of a digit train; the others, and all other "
        "digits, test. `default` is the score that the detector takes by itself (`patch_novelty`, which asks no "
        "network: with `max_steps=1` it is the same), the others are of fits of seed 0.",
        "foreign": f"## All digits against what is none\n\nOne model of {FOREIGN_TRAIN:,} digits of all classes; "
        f"{MAX_FOREIGN} new digits against {MAX_FOREIGN} images of each kind.",
    }
    for part, heading in headings.items():
        some = [run for run in runs if run["part"] == part]
        if some:
            lines += ["", heading, "", *_areas(some)]
    some = [run for run in runs if run["part"] == "density"]
    if some:
        lines += ["", "## The classic model\n\n784-400-200-20, Adam, batches of 128, 10 epochs; held-out images.", ""]
        lines += ["| likelihood and bound | value |", "|---|---|"]
        for task in dict.fromkeys(run["task"] for run in some):
            for unit, words in (("nats", "nats"), ("bits_per_dimension", "bits per dimension")):
                values = [run[unit] for run in some if run["task"] == task and unit in run]
                lines += [f"| {task} | {fmean(values):.{1 if unit == 'nats' else 3}f} {words} |"] if values else []
    return "\n".join(lines) + "\n"


def _areas(runs: Sequence[dict[str, Any]]) -> list[str]:
    methods = list(dict.fromkeys(run["method"] for run in runs))
    order = ["default", *FOREIGN_SCORES, *BASELINES]
    methods.sort(key=lambda method: order.index(method.split(" ")[0]))
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        f"Seeds {', '.join(map(str, seeds))}.",
        "",
        f"| | {' | '.join(methods)} |",
        "|---" * (len(methods) + 1) + "|",
    ]
    columns: dict[str, list[float]] = {method: [] for method in methods}
    for task in tasks:
        cells = []
        for method in methods:
            areas = [100 * run["roc_auc"] for run in runs if run["task"] == task and run["method"] == method]
            columns[method] += [fmean(areas)] if areas else []
            cells.append(f"{fmean(areas):.1f}" if areas else "-")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    means = (f"**{fmean(values):.2f}**" if len(values) == len(tasks) else "-" for values in columns.values())
    return [*lines, f"| **mean** | {' | '.join(means)} |", *_flagged(runs)]


def _flagged(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How many images of the digit itself were flagged by each method that has a threshold."""
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs if "false_positive_rate" in run):
        own = [run for run in runs if run["method"] == method]
        seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in own}))
        share = 100 * fmean(run["false_positive_rate"] for run in own)
        lines += ["", f"{method}, seeds {seeds}: {share:.1f} % of the new images of the digit itself are flagged."]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="IDX files of MNIST")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)), help="of `classes`: these only")
    parser.add_argument("--max-steps", type=int, metavar="N", help="of `classes`: train for so many steps only")
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help="keep fitted models here, and take them from here"
    )
    parser.add_argument("--runs", type=Path, default=HERE / "images.jsonl")
    parser.add_argument("--table", action="store_true", help="write the page of the runs, and run nothing")
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence to set below the title")
    arguments = parser.parse_args(argv)
    if arguments.table:
        write_page(arguments.runs, table, arguments.note)
        return
    if arguments.mnist is None:
        parser.error("--mnist is needed, the folder of the IDX files")
    X, y = read_mnist(arguments.mnist)
    runs_there = Runs(arguments.runs)
    for seed in arguments.seeds:
        for part in arguments.parts:
            extra = {"digits": arguments.digits, "max_steps": arguments.max_steps} if part == "classes" else {}
            PARTS[part](X, y, seed, runs_there, arguments.models, **extra)


if __name__ == "__main__":
    main()
