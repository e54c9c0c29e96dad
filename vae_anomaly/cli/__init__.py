"""The command line: ``vae-anomaly VERB``. One file for each verb; this one holds the group and the exit codes."""

import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from vae_anomaly.cli.common import printable
from vae_anomaly.errors import CalibrationWarning, DataWarning, PosteriorCollapseWarning

__all__ = ["cli", "main"]

# What each verb does stands here, so that the list of verbs loads none of them.
VERBS = {
    "fit": "Learn what normal rows look like.",
    "score": "Score new rows and flag the anomalies.",
    "calibrate": "Set the threshold anew from more normal rows.",
    "report": "Write ROC and precision-recall figures for labelled rows.",
    "compare": "Compare with the usual detectors on labelled rows.",
    "inspect": "Show what a model file holds.",
    "sample": "Draw new rows from a model.",
    "demo": "Run fit, score and report on bundled data.",
}


# Threads of OpenMP wait for the next operation awake, GNU's for milliseconds. Where another process wants the
# processors, each operation then waits until all threads of both had a turn; so often, some 0.1 ms, is as fast alone.
SPINS = "3000"

# New objects after which Python looks for garbage. Torch and scikit-learn make a million that stay, and to go through
# them over and over took half a second.
NEW_OBJECTS = 10_000

# What torch says where Python has an error of its own.
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")


class CliError(click.ClickException):
    """An error with a sentence for the user and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code  # type: ignore[misc]


class Verbs(click.Group):
    """Loads a verb when it is used, and turns errors into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb: click.Command = import_module(f"vae_anomaly.cli.{cmd_name}").command
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        # --help and --version are printed here.
        with _sentences():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _sentences(debug=ctx.params["debug"]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for category in (CalibrationWarning, DataWarning, PosteriorCollapseWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = _shown_once()
            return super().invoke(ctx)


@contextmanager
def _sentences(debug: bool = False) -> Iterator[None]:
    """Turn errors into sentences and exit codes, but for tracebacks that are asked for."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except BrokenPipeError:
        # The reader of our output (`head`, say) has gone, with what it wanted. The rest goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None
    except Exception as error:
        if debug:
            raise
        raise _as_cli_error(error) from error


def _shown_once() -> Callable[..., None]:
    """Shows each warning as a sentence, and once for all batches of a table."""
    shown = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            # There is no option for the warm-up.
            text = str(message).replace("Lower beta or raise warmup.", "Lower --beta.")
            click.echo(f"Warning: {printable(text)}", err=True)

    return show


def _as_cli_error(error: Exception) -> CliError:
    code = getattr(error, "exit_code", None)
    if code is not None:
        return CliError(str(error), code)
    if isinstance(error, ImportError) and error.name:
        return CliError(f"The package {error.name!r} is missing. Install it with: pip install {error.name}", 5)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return CliError(f"{error.strerror or error}{where}", 1)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return CliError("Not enough memory for these data and options.", 1)
    if isinstance(error, ValueError):
        return CliError(str(error), 2)
    text = f"Unexpected {type(error).__name__}: {error}. Run `vae-anomaly --debug ...` for the traceback."
    return CliError(text, 1)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vae-anomaly")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Anomaly detection with variational autoencoders that are trained on normal data only.

    \b
      vae-anomaly fit    normal.csv                       -o pump.safetensors
      vae-anomaly score  pump.safetensors new.csv         -o scores.csv
      vae-anomaly report pump.safetensors labelled.csv --label anomaly -o reports/pump.html
    """


def main() -> None:
    """Entry point of the console script."""
    # Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    gc.set_threshold(NEW_OBJECTS)
    try:
        status = cli.main(prog_name="vae-anomaly", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; each output is whole, or as it was.", err=True)
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
