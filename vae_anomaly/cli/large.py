"""Tables larger than memory on the command line: when they are taken as such, and what is said of it."""

import os
import re
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import Command, all_options, named_as_in_python
from vae_anomaly.cli.images import holds_images

if TYPE_CHECKING:
    from vae_anomaly.data.large import LargeTable

__all__ = ["Size", "columns_note", "large_options", "open_large", "sample_note"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType):  # type: ignore[type-arg]
    """Number of bytes, such as 4GB, 1.5GiB or 500M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", value.strip(), re.IGNORECASE)
        unit = found[2].upper() if found else ""
        n_bytes = 0
        if found and (unit or not found[3]):
            base = 1024 ** "_KMGT".index(unit) if found[3] else UNITS[unit]
            n_bytes = int(float(found[1]) * base)
        if n_bytes < 1:
            option = param.opts[-1] if param else "value"
            raise click.UsageError(f"{option} {value}: must be a size, such as 4GB, 1.5GiB or 500M.", ctx)
        return n_bytes


def large_options(command: Command) -> Command:
    """Options that say how much of a table fit takes into memory."""
    return all_options(
        [
            click.option(
                "--max-rows",
                type=click.IntRange(2),
                metavar="N",
                help="Fit on N of the normal rows, drawn uniformly from the whole table.",
            ),
            click.option(
                "--max-memory",
                type=Size(),
                metavar="SIZE",
                help="Encode tables that may take more into a temporary file [default: half of what is free].",
            ),
        ]
    )(command)


def open_large(
    path: str, *, images: bool, max_rows: int | None, max_memory: int | None, **columns: Any
) -> "LargeTable | None":
    """The table at ``path`` to be read in batches, if it is to be; else None."""
    if images or holds_images(path):
        if max_rows is not None:
            raise click.UsageError(f"--max-rows is for tables, and {path} holds images.")
        return None
    if path == "-" or (max_rows is None and _fits(path, max_memory)):
        return None
    from vae_anomaly.data.large import LargeTable

    if columns["normal_value"] and not columns["label"]:
        raise click.UsageError("--normal-value needs --label, the column in which it stands.")
    columns |= named_as_in_python(**{name: columns.pop(name) for name in ("id_column", "delimiter")})
    return LargeTable(path, **columns)


def _fits(path: str, max_memory: int | None) -> bool:
    # A file that is small by any measure spares the look at how much memory is free.
    if os.path.isfile(path) and os.path.getsize(path) < 10**6 and max_memory is None:
        return True
    from vae_anomaly.data.large import memory_needed
    from vae_anomaly.errors import DataError
    from vae_anomaly.memory import available_memory

    try:
        needed = memory_needed(path)
    except DataError:
        # A folder without a table: whoever reads it says what else it may be.
        return True
    return needed <= (available_memory() // 2 if max_memory is None else max_memory)


def sample_note(n_rows: int, n_normal: int, seed: int) -> dict[str, int]:
    """What the model file says of the rows that it was fitted on."""
    return {"rows": n_rows, "normal_rows": n_normal, "seed": seed}


def columns_note(n_sample: int, n_normal: int) -> str:
    """What is said of columns that are known from a sample."""
    return (
        f"The columns' scales and categories come from {n_sample} of the {n_normal} normal rows, drawn uniformly; "
        "the networks learn from all of them."
    )
