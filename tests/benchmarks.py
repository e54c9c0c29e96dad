"""Benchmark scripts as modules: they stand in a folder that is no package, and import each other."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent.parent / "reports" / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    """The script ``reports/benchmarks/<name>.py``, not run."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module
