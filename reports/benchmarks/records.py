"""What all benchmarks share: runs as JSON lines, with machine and versions, and the Markdown pages made of them."""

import argparse
import ast
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import sklearn
import torch

from vae_anomaly import __version__


def provenance() -> dict[str, Any]:
    """Versions and machine of a line."""
    return {
        "versions": {
            "vae_anomaly": __version__,
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
        },
        "machine": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Lines of the runs; one that an interrupted run left unfinished does not count."""
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return runs


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a line, on a line of its own even after an unfinished one."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(run).encode() + b"\n")


def machines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Versions and machines, each once."""
    said = {
        ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        + f"; {run['machine']['machine']}, {run['machine']['cpus']} CPUs, {run['machine'].get('threads', '?')} threads"
        for run in runs
    }
    return [f"{text}." for text in sorted(said)]


@contextmanager
def constants(changes: Mapping[str, Any]) -> Iterator[None]:
    """Constants of the package by other values, in fits and scores alike: those with a dot, as ``scores.MAX_NATS``."""
    with ExitStack() as stack:
        for target in (name for name in changes if "." in name):
            try:
                stack.enter_context(patch(f"vae_anomaly.{target}", changes[target]))
            except (AttributeError, ImportError):
                raise SystemExit(f"--set {target}: vae_anomaly has no such constant.") from None
        yield


def write_page(runs: Path, page: Callable[[list[dict[str, Any]]], str], note: str = "") -> None:
    """Write the page of the runs beside them, with a note below its title."""
    lines = read_runs(runs)
    if not lines:
        raise SystemExit(f"{runs} holds no runs yet.")
    target = runs.with_suffix(".md")
    title, rest = page(lines).split("\n", 1)
    target.write_text("\n".join([title, *(["", note] if note else []), rest]), encoding="utf-8")
    print(f"Wrote {target}.")


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading_lines(heading: Sequence[str]) -> list[str]:
    """The head of a Markdown table."""
    return [table_line(heading), "|---" * len(heading) + "|"]


def setting(text: str) -> tuple[str, Any]:
    """Name and value of a parameter; what is no Python literal is text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}: write name=value.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
