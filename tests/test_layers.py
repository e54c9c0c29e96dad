"""Imports point down only; what is heavy is imported late; only the command line prints."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tables import TINY, numbers

import vae_anomaly
from vae_anomaly.detector import VAEDetector
from vae_anomaly.priors import PRIORS

ROOT = Path(vae_anomaly.__file__).parent

# What each module may import of the package, in functions, too; names that only type checkers see do not count.
TABLE = {
    # The ground: nothing of the package.
    "spellings": set(),
    "errors": set(),
    "atomic": set(),
    "scratch": set(),
    "tails": set(),
    "thresholds": {"tails"},
    "replay": set(),
    "products": set(),
    "affine": set(),
    "fused": {"affine", "replay"},
    "memory": set(),
    "frames": set(),
    "in_parts": {"errors", "frames", "scratch"},
    "kernels": set(),
    "kernels.search": set(),
    "kernels.launch": set(),
    "adamw": set(),
    "kernels.adamw": {"adamw", "kernels.launch"},
    "kernels.supply": {"kernels.launch", "supply"},
    "kernels.layers": {"kernels.launch", "replay"},
    "neighbours": {"kernels", "kernels.search", "streaming"},
    "number_texts": set(),
    "pipeline": set(),
    "workers": {"pipeline"},
    "nets": {"affine", "fused"},
    "likelihoods": set(),
    "priors": set(),
    "baselines": set(),
    "splitting": set(),
    "row_hashes": {"scratch"},
    "groups": {"errors", "spellings", "thresholds"},
    "label_thresholds": {"errors"},
    "csv_text": {"number_texts"},
    "discoveries": {"thresholds"},
    "delong": set(),
    "drift": set(),
    # The torch layer.
    "filters": set(),
    "backbones": {"errors", "filters"},
    "patch_grid": set(),
    "picture": set(),
    "vae": {"errors", "likelihoods", "nets", "picture", "priors"},
    "ensemble": {"nets", "priors", "vae"},
    "augment": set(),
    "streaming": set(),
    "usual": set(),
    "patches": {"neighbours", "picture", "scratch", "usual", "vae"},
    "image_scores": {"vae"},
    "scores": {"image_scores", "neighbours", "patches", "usual", "vae"},
    "pullbacks": {"likelihoods", "vae"},
    "kernels.terms": {"kernels.launch", "likelihoods", "pullbacks", "vae"},
    "kernels.learning": {
        "ensemble", "kernels", "kernels.adamw", "kernels.layers", "kernels.terms", "products", "replay",
    },
    "objective": {"ensemble", "kernels.layers", "kernels.terms", "nets", "pullbacks", "replay", "scratch", "vae"},
    "optimizer": {"adamw", "kernels.adamw"},
    "supply": {"splitting"},
    "replayed_steps": {"kernels.supply", "pipeline", "replay", "streaming", "supply"},
    "training": {
        "ensemble", "errors", "kernels.learning", "memory", "objective", "optimizer", "products", "replay",
        "replayed_steps", "streaming", "supply", "vae",
    },
    # Tables and files.
    "bends": set(),
    "preprocessing": {"bends", "errors", "spellings"},
    "persistence": {"atomic", "errors"},
    "data": {"data.table", "data.tabular"},
    "data.arrow": {"errors"},
    "data.delimited": {"data.arrow", "errors"},
    "data.writers": {"data.table", "errors"},
    "data.csv_blocks": {"errors"},
    "data.words": {"errors"},
    "data.batches": {
        "data.arrow", "data.csv_blocks", "data.delimited", "data.table", "data.tabular", "data.words", "errors",
    },
    "data.table": {"errors"},
    "data.tabular": {"data.arrow", "data.delimited", "data.table", "errors", "frames"},
    "data.samples": {"errors"},
    "data.large": {"data.batches", "data.table", "data.tabular", "in_parts"},
    # Images.
    "data.decoding": set(),
    "data.image_set": {"data.decoding", "errors"},
    "data.drawings": {"data.image_set"},
    "data.image_arrays": {"errors"},
    "data.named": {"data.image_set", "data.images", "errors"},
    "data.maps": {"atomic", "data.decoding"},
    "data.decode_once": {"data.image_set", "scratch"},
    "data.masks": {"data.decoding"},
    "data.images": {
        "data.arrow", "data.decoding", "data.image_arrays", "data.image_set", "data.table", "data.tabular", "errors",
    },
    # The estimator.
    "features": {"backbones", "errors", "patch_grid", "pixels", "products", "scratch"},
    "tiles": {"errors", "features", "patch_grid", "pixels", "scoring", "scratch"},
    "pretrained": {"errors"},
    "parameters": {
        "augment", "backbones", "errors", "likelihoods", "nets", "priors", "products", "scores", "thresholds",
    },
    "model_state": {
        "", "parameters", "persistence", "ensemble", "groups", "label_thresholds", "likelihoods", "planning",
        "preprocessing",
        "row_hashes", "features", "pixels", "tails", "thresholds", "tiles", "training", "errors",
    },
    "replayed_blocks": {"ensemble", "replay"},
    "scoring": {"ensemble", "memory", "products", "replay", "replayed_blocks", "scratch", "vae", "workers"},
    "encoding": {"errors", "memory", "preprocessing", "workers"},
    "planning": {
        "augment", "features", "likelihoods", "picture", "pixels", "preprocessing", "scores", "scratch", "splitting",
        "training", "vae",
    },
    "inputs": {"errors", "in_parts", "pixels", "preprocessing"},
    "schemas": {
        "backbones", "errors", "features", "in_parts", "inputs", "likelihoods", "parameters", "pixels", "planning",
        "preprocessing", "pretrained", "tiles",
    },
    "calibration": {"errors", "groups", "label_thresholds", "splitting", "tails", "thresholds"},
    "fitting": {
        "ensemble", "errors", "memory", "objective", "parameters", "patches", "planning", "products", "row_hashes",
        "scores", "scoring", "scratch", "splitting", "streaming", "training",
    },
    "detector": {
        "calibration", "encoding", "errors", "features", "fitting", "groups", "in_parts", "inputs",
        "label_thresholds", "model_state", "parameters", "pixels", "planning", "row_hashes", "schemas", "scores",
        "scoring", "splitting", "thresholds", "tiles", "training", "vae", "workers",
    },
    "predictions": {"data", "discoveries", "errors", "groups", "number_texts"},
    # Scoring of tables of any size.
    "partial": {"atomic", "errors"},
    "tallies": {"discoveries", "drift"},
    "score_file": {
        "atomic", "csv_text", "data.batches", "discoveries", "drift", "errors", "partial", "predictions", "tallies",
        "workers",
    },
    # Evaluation.
    "areas": set(),
    "metrics": {"areas", "delong", "errors"},
    "pixels": {"errors", "scratch"},
    "heat_maps": {"data.images", "data.maps", "pixels", "predictions"},
    "pixel_metrics": set(),
    "traversal": {"errors"},
    "localisation": {"data.decoding", "data.images", "data.masks", "heat_maps", "pixel_metrics", "predictions"},
    "account": {
        "", "by_type", "data", "errors", "heat_maps", "localisation", "metrics", "paired", "planning",
        "predictions", "report.contents", "report.diagnostics", "report.pictures", "scores", "thresholds", "traversal",
    },
    "paired": {"delong", "errors", "metrics"},
    "by_type": {"delong", "metrics"},
    "comparison": {"baselines", "errors", "metrics"},
    "report": {
        "report.charts", "report.comparison", "report.contents", "report.diagnostics", "report.figures",
        "report.histogram", "report.render", "report.svg",
    },
    "report.formats": {"metrics"},
    "report.axes": set(),
    "report.svg": {"report.axes"},
    "report.page": set(),
    "report.charts": {"metrics", "report.axes", "report.formats"},
    "report.histogram": {"metrics", "report.axes", "report.formats"},
    "report.diagnostics": {"metrics", "report.axes"},
    "report.operating_points": {"metrics", "report.formats"},
    "report.pictures": {"report.axes"},
    "report.localisation": {"pixel_metrics", "report.axes"},
    "report.contents": {
        "by_type", "metrics", "paired", "pixel_metrics", "report.diagnostics", "report.pictures",
    },
    "report.figures": {
        "atomic", "metrics", "report.charts", "report.contents", "report.diagnostics", "report.formats",
        "report.histogram", "report.localisation", "report.pictures",
    },
    "report.verdict": {"metrics", "report.contents", "report.formats"},
    "report.tables": {"by_type", "metrics", "paired", "report.formats"},
    "report.comparison": {
        "metrics", "report.charts", "report.formats", "report.page", "report.svg", "report.tables",
    },
    "report.render": {
        "atomic", "metrics", "report.contents", "report.figures", "report.formats", "report.operating_points",
        "report.page", "report.svg", "report.tables", "report.verdict",
    },
    # The lazy public names.
    "": {"data", "detector", "vae"},
    # The command line.
    "cli": {"cli.common", "errors"},
    "cli.names": set(),
    "__main__": {"cli"},
    "cli.common": {
        "cli.names", "data", "data.batches", "data.writers", "detector", "errors", "parameters", "products",
        "thresholds",
    },
    "cli.outputs": {"cli.images", "data", "data.decoding", "data.maps"},
    "cli.images": {"cli.common", "data", "data.decoding", "data.images", "data.named", "errors", "persistence"},
    "cli.large": {"cli.common", "cli.images", "data.large", "errors", "memory"},
    "cli.fit": {
        "backbones", "cli.outputs", "cli.common", "cli.images", "cli.large", "data", "data.decode_once",
        "data.delimited", "data.drawings", "data.images", "detector", "errors", "in_parts", "planning", "predictions",
        "row_hashes", "splitting",
    },
    "cli.score": {
        "", "atomic", "cli.outputs", "cli.common", "cli.images", "data.tabular", "data.writers", "drift", "heat_maps",
        "partial", "predictions", "score_file",
    },
    "cli.calibrate": {
        "cli.common", "cli.images", "cli.names", "cli.outputs", "data", "data.decode_once", "errors",
        "label_thresholds", "predictions",
    },
    "cli.report": {
        "account", "atomic", "by_type", "cli.outputs", "cli.common", "cli.images", "metrics", "paired", "pixel_metrics",
        "report",
    },
    "cli.compare": {
        "", "atomic", "cli.outputs", "cli.common", "cli.images", "cli.names", "comparison", "detector", "errors",
        "predictions", "report", "report.comparison",
    },
    "cli.inspect": {"cli.common", "persistence"},
    "cli.sample": {
        "atomic", "cli.outputs", "cli.common", "cli.images", "data.images", "data.writers", "errors", "traversal",
    },
    "cli.demo": {"atomic", "baselines", "cli.common", "data.samples", "data.writers", "errors"},
}  # fmt: skip

TORCH_LAYER = (
    "affine", "backbones", "filters", "fused", "kernels", "nets", "likelihoods", "patch_grid", "priors", "vae",
    "ensemble", "scores", "optimizer", "training", "augment", "streaming", "products", "replay", "replayed_steps",
    "supply",
)  # fmt: skip
FREE_OF_TORCH = (
    "errors", "atomic", "thresholds", "label_thresholds", "metrics", "report", "preprocessing", "persistence",
    "predictions", "data", "data.samples", "baselines", "comparison", "scratch", "pixels",
    "pixel_metrics",
)  # fmt: skip

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node, *, functions):
    """Import statements that run, in function bodies only if asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_type_checking(child):
            for other in child.orelse:
                yield from import_nodes(other, functions=functions)
        elif functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from import_nodes(child, functions=functions)


def imported(name, *, functions=True):
    """Full names of the modules that a module imports."""
    found = set()
    for node in import_nodes(TREES[name], functions=functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{name}: relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}".removeprefix("vae_anomaly.")
            found.add(f"vae_anomaly.{inner}" if inner in FILES else node.module)
    return found


def inside(names):
    """Modules of the package among full names, without the package's name."""
    return {
        name.removeprefix("vae_anomaly").removeprefix(".")
        for name in names
        if name == "vae_anomaly" or name.startswith("vae_anomaly.")
    }


def outside(name):
    """Top-level packages of others that a module imports, in functions, too."""
    return {full.split(".")[0] for full in imported(name)} - {"vae_anomaly"}


def reachable(name):
    """Modules of the package that importing one imports."""
    found, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo.extend(inside(imported(module, functions=False)))
    return found


def test_every_module_is_in_the_table():
    assert sorted(TABLE) == sorted(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_down(name):
    assert inside(imported(name)) <= TABLE.get(name, set())


def test_the_table_allows_no_more_than_is_used():
    # The root package hands out names by import_module, which no import statement shows.
    unused = {name: TABLE[name] - inside(imported(name)) for name in TABLE if name in FILES and name}
    assert {name: sorted(extra) for name, extra in unused.items() if extra} == {}


def test_no_cycles():
    graph = {name: inside(imported(name, functions=False)) - {""} for name in FILES}
    list(TopologicalSorter(graph).static_order())


def test_layers_have_no_cycles_even_with_late_imports():
    graph = {name: inside(imported(name)) - {""} for name in FILES}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", FREE_OF_TORCH)
def test_no_torch(name):
    with_torch = {module for module in reachable(name) if outside(module) & {"torch", "torchvision"}}
    assert not with_torch


@pytest.mark.parametrize("name", TORCH_LAYER)
def test_the_torch_layer_sees_no_paths_files_or_frames(name):
    assert not outside(name) & {"pandas", "pathlib", "os", "io", "click", "sklearn", "pyarrow", "safetensors", "json"}
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"open", "torch.save", "torch.load"}


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("cli")])
def test_only_the_command_line_prints(name):
    assert "click" not in outside(name)
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.stdout.write", "sys.stderr.write"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_executed_that_was_read(name):
    assert not outside(name) & {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert not {ast.unparse(call.func) for call in calls} & {"eval", "exec"}
    for call in calls:
        if ast.unparse(call.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("weights_only") == "True"


def loaded_by(code, *candidates):
    """Which of the candidates are loaded after the code ran in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*[name for name in {candidates!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return done.stderr.split()


@pytest.mark.parametrize("code", ["import vae_anomaly", "import vae_anomaly.cli", "from vae_anomaly.cli import main"])
def test_importing_the_package_is_light(code):
    assert loaded_by(code, "torch", "torchvision", "pandas", "numpy", "sklearn", "matplotlib", "pyarrow") == []


def test_readers_metrics_and_reports_load_no_torch():
    code = "import vae_anomaly.data, vae_anomaly.metrics, vae_anomaly.report, vae_anomaly.thresholds\n"
    assert loaded_by(code + "vae_anomaly.read", "torch", "torchvision", "vae_anomaly.detector") == []


@pytest.mark.parametrize("prior", PRIORS)
def test_a_model_is_loaded_and_drawn_from_without_a_compiler(prior, tmp_path):
    VAEDetector(**TINY, prior=prior, score_name="kl").fit(numbers()).save(tmp_path / "model.vae")
    code = f"import vae_anomaly\nvae_anomaly.load({str(tmp_path / 'model.vae')!r}).sample(2)"
    compiler = ("torch._dynamo", "sympy")
    assert loaded_by(code, *compiler) == loaded_by("import torch", *compiler)


def test_public_names():
    assert sorted(vae_anomaly.__all__) == dir(vae_anomaly)
    for name in vae_anomaly.__all__:
        assert getattr(vae_anomaly, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Detektor'"):
        _ = vae_anomaly.Detektor
