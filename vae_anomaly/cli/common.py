"""What the verbs share: options, checks of outputs, reading of tables."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vae_anomaly.cli.names import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vae_anomaly.data import Data
    from vae_anomaly.data.batches import Batches
    from vae_anomaly.detector import VAEDetector

# All control characters but tabs and ends of lines.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Command = TypeVar("Command", bound=Callable[..., Any])


class NameType(click.ParamType):  # type: ignore[type-arg]
    """Name of an entry of a registry, or of two."""

    def __init__(self, what: str, also: Sequence[str] = (), second: str | None = None) -> None:
        self.name = what
        self.known = (*also, *NAMES[what], *(NAMES[second] if second else ()))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from vae_anomaly.errors import look_up

        try:
            look_up(self.name, value, dict.fromkeys(self.known))
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.known)}]"


class Fraction(click.ParamType):  # type: ignore[type-arg]
    """Number strictly between 0 and 1."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0.0 < number < 1.0:
            option = param.opts[-1] if param else "value"
            raise click.UsageError(f"{option} {value}: must be a number between 0 and 1, both excluded.", ctx)
        return number


class FiniteRange(click.FloatRange):
    """Range of numbers that leaves out NaN and infinity, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not abs(number) < float("inf"):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


def table_options(*, label: bool) -> Callable[[Command], Command]:
    """Options that say which columns of a table are not features."""
    options = [
        click.option("--id", "id_column", metavar="COLUMN", help="Column that names the rows; not a feature."),
        click.option("--drop", metavar="COLUMN", multiple=True, help="Column to leave out (repeatable)."),
        click.option("--delimiter", metavar="CHAR", help="Cell separator of CSV files [default: found by itself]."),
    ]
    if label:
        options = [
            click.option("--label", metavar="COLUMN", help="Column that says which rows are normal; not a feature."),
            click.option(
                "--normal-value",
                metavar="VALUE",
                multiple=True,
                help="Value of the label that means normal (repeatable) [default: 0, with 1 for anomalies].",
            ),
            *options,
        ]
    return all_options(options)


def group_option(command: Command) -> Command:
    """Option that names the groups of the rows."""
    return click.option(
        "--group", metavar="COLUMN", help="Column of groups, each with its own threshold; not a feature."
    )(command)


def run_options(command: Command) -> Command:
    """Options of every verb that works."""
    return all_options(
        [
            click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON to standard output."),
            click.option("-q", "--quiet", is_flag=True, help="No progress and no summary."),
        ]
    )(command)


def overwrite_option(command: Command) -> Command:
    """Option that allows an existing output."""
    return click.option("--overwrite", is_flag=True, help="Replace an existing output.")(command)


def device_option(command: Command) -> Command:
    """Option that picks the device."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")(command)


def all_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    """Decorator that adds all of them, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def read_data(path: str, **options: Any) -> "Data":
    """Table at ``path``; ``-`` is standard input. The options are those of :func:`~vae_anomaly.data.read`."""
    from vae_anomaly.data import read

    options |= named_as_in_python(**{name: options.pop(name, None) for name in ("id_column", "delimiter")})
    if options.get("normal_value") and not options.get("label"):
        raise click.UsageError("--normal-value needs --label, the column in which it stands.")
    return read(path, **options)


def read_batches(path: str, **options: Any) -> "Batches":
    """Table at ``path`` as in :func:`read_data`, to be read in batches; it needs no labels."""
    from vae_anomaly.data.batches import open_batches

    options |= named_as_in_python(**{name: options.pop(name, None) for name in ("id_column", "delimiter")})
    return open_batches(path, **options)


def named_as_in_python(id_column: str | None, delimiter: str | None) -> dict[str, Any]:
    """These options as readers take them."""
    delimiter = {"\\t": "\t"}.get(delimiter or "", delimiter)
    if delimiter is not None and len(delimiter) != 1:
        raise click.UsageError(f"--delimiter {delimiter}: must be one character.")
    return {"id": id_column, "delimiter": delimiter}


def output_format(path: str) -> str:
    """Format of a table to write, from the name of the file; CSV for standard output."""
    from vae_anomaly.data.writers import table_format
    from vae_anomaly.errors import DataError

    try:
        return ".csv" if path == "-" else table_format(path)
    except DataError as error:
        raise click.UsageError(f"-o {path}: {error}") from None


def load_detector(path: str, device: str = "cpu") -> "VAEDetector":
    """Detector from a model file."""
    from vae_anomaly.detector import load

    check_device(device)
    return load(path, device=device)


def check_device(device: str, precision: str = "auto") -> None:
    """Refuse a device that can't be used, or can't multiply so."""
    if device in ("auto", "cpu") and precision != "bfloat16":
        # Every machine can, and what is wrong with the data is said before torch is imported.
        return
    from vae_anomaly.parameters import device_fault, find_device
    from vae_anomaly.products import precision_fault

    fault = device_fault(device)
    if fault:
        raise click.UsageError(f"--device {device}: {fault} Use auto or cpu.")
    fault = precision_fault(precision, find_device(device))
    if fault:
        raise click.UsageError(f"--precision {precision}: {fault} Use auto.")


def text_columns(detector: "VAEDetector") -> tuple[str, ...]:
    """Columns that the model knows as text; "007" must not be read as a number there."""
    return tuple(column.name for column in detector.schema_.columns if column.dtype == "text")


def model_columns(detector: "VAEDetector", keep: Sequence[str] = ()) -> dict[str, Any]:
    """What to tell :func:`read_data` of the columns that the model knows: texts, and the groups beside the features."""
    group = () if detector.groups_ is None else (detector.groups_.column,)
    return {"keep": (*group, *keep), "text_columns": (*text_columns(detector), *group)}


def tell(quiet: bool, message: str) -> None:
    """A line for people, on standard error."""
    if not quiet:
        click.echo(printable(message), err=True)


def printable(text: object) -> str:
    """Text without what a terminal takes for a command: names come from files that others wrote."""
    return CONTROL.sub("\ufffd", str(text))


def print_json(document: dict[str, Any]) -> None:
    """A JSON document on standard output; numbers that are not finite become null."""
    click.echo(json.dumps(_finite(document), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


@contextmanager
def progress(quiet: bool) -> "Iterator[Callable[[float, float, float], None] | None]":
    """Progress bar with epoch, held-out ELBO and time left; silent where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    length = 1000
    status = {"text": ""}
    bar: AbstractContextManager[Any] = click.progressbar(
        length=length, label="Training", file=sys.stderr, show_eta=True, item_show_func=lambda _: status["text"]
    )
    with bar as shown:

        def on_check(done: float, epoch: float, elbo: float) -> None:
            status["text"] = f"epoch {epoch:.0f}, held-out ELBO {elbo:.2f} nats"
            shown.update(int(done * length) - shown.pos, status["text"])

        yield on_check
        # Early stopping ends before the last step.
        shown.update(length - shown.pos, status["text"])


def promise(detector: "VAEDetector") -> str:
    """What the threshold promises, and how firmly, in one sentence."""
    from vae_anomaly.thresholds import realised_rate

    rule, n = detector.threshold_rule_, len(detector.calibration_scores_)
    if rule["labels"] is not None:
        return chosen_on(rule)
    share = f"{100 * rule['fpr']:g} %"
    if rule["name"] == "conformal":
        if detector.groups_ is not None:
            return by_group(detector, share)
        low, high = realised_rate(n, rule["fpr"])
        firm = f"the true rate is {100 * low:.2g} % to {100 * high:.2g} %, 90 % of the time"
        if rule["out_of_fold"]:
            # Cross-validation+ is proven for a little more than twice the rate; benchmarks show about the rate itself.
            return f"about {share} of normal rows flagged on average ({n} rows scored out of fold; {firm})"
        return f"at most {share} of normal rows flagged on average ({n} calibration rows; {firm})"
    if rule["name"] == "quantile":
        return f"{share} of the {n} calibration rows flagged; no promise for new rows (plain quantile)"
    return f"{share} of normal rows flagged, by extrapolation from {n} calibration rows ({extent(rule)})"


def by_group(detector: "VAEDetector", share: str) -> str:
    """What a threshold for each group promises."""
    from vae_anomaly.thresholds import realised_rate

    groups, rule = detector.groups_, detector.threshold_rule_
    assert groups is not None
    counts = groups.counts()
    least = int(counts.argmin())
    low, high = realised_rate(int(counts[least]), rule["fpr"])
    most, scored = ("about", "scored out of fold") if rule["out_of_fold"] else ("at most", "that calibrate")
    return (
        f"{most} {share} of normal rows flagged on average in each of {len(groups.names)} groups of {groups.column!r}, "
        f"by a threshold of its own ({counts.sum()} rows {scored}; in the weakest group, {groups.names[least]!r} with "
        f"{counts[least]}, the true rate is {100 * low:.2g} % to {100 * high:.2g} %, 90 % of the time)"
    )


def chosen_on(rule: dict[str, Any]) -> str:
    """What a threshold was chosen on, and what it does there."""
    labels = rule["labels"]
    named = f" of {labels['data']}" if labels.get("data") else ""
    return (
        f"chosen on labels ({rule['name']}); it catches {labels['anomalies_flagged']} of {labels['n_anomalies']} "
        f"anomalies and flags {labels['normal_flagged']} of {labels['n_normal']} normal rows{named}, which is no test "
        "result: it was chosen on these rows, and promises nothing for new ones"
    )


def extent(rule: dict[str, Any]) -> str:
    """How well a threshold that was extrapolated is known."""
    beyond = rule["extrapolation"]
    if beyond is None:
        return "peaks over threshold"
    return (
        f"peaks over threshold: {beyond['n_excesses']} scores above {beyond['level']:.4g}; with 95 % confidence, and "
        f"if their law holds on, the shape of the tail is {beyond['shape']:.2g} ({beyond['shape_low']:.2g} to "
        f"{beyond['shape_high']:.2g}) and the threshold lies between {beyond['low']:.4g} and {beyond['high']:.4g}"
    )
