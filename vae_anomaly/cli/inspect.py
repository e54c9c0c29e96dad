"""vae-anomaly inspect: what a model file holds, from its header alone."""

from typing import Any

import click

from vae_anomaly.cli.common import chosen_on, extent, print_json, printable


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print the whole header as JSON.")
def command(model: str, as_json: bool) -> None:
    """Show schema, threshold, training summary and versions of MODEL; the network is not built."""
    from vae_anomaly.persistence import load_model

    header, _ = load_model(model)
    if as_json:
        print_json(header)
        return
    for title, rows in _sections(header).items():
        click.echo(printable(title))
        for name, value in rows.items():
            click.echo(printable(f"  {name:<22} {value}"))


def _sections(header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    params, threshold, training = header["params"], header["threshold"], header["training"]
    units = training["active_units"]
    return {
        "Model": {
            "score": header["score"],
            "likelihood": params["likelihood"],
            "prior": params["prior"],
            "members": params["n_estimators"],
            "latent variables": header["architecture"]["latent_dim"],
            "network": header["architecture"]["net"],
            "hidden layers": ", ".join(map(str, params["hidden"])) or "none",
            "parameters": f"{training['n_parameters']:,}",
            "seed": params["random_state"],
        },
        "Threshold": _threshold(threshold) | _groups(header),
        "Training": {
            "data": header["notes"].get("data", "-"),
            **_augmentation(header),
            "fingerprint": header["fingerprint"][:16],
            "rows": f"{training['n_train']:,}",
            "epochs": f"{training['epochs']:g}",
            "held-out ELBO": f"{training['held_out_elbo']:.3f} nats",
            "reconstruction": f"{training['held_out_reconstruction']:.3f} nats",
            "KL": f"{training['held_out_kl']:.3f} nats",
            "active units": f"{', '.join(map(str, units))} (by member)",
        },
        **_schema(header["schema"]),
        "Versions": {"format": header["format_version"], **header["versions"]},
    }


def _augmentation(header: dict[str, Any]) -> dict[str, Any]:
    """What was done to the images that were learned from; nothing to say of a table."""
    if not isinstance(header["schema"], dict):
        return {}
    params = header["params"]
    parts = [f"flips {', '.join(params['flips'])}"] if params["flips"] else []
    parts += [f"{name} {params[name]:g}" for name in ("shift", "brightness") if params[name]]
    return {"augmentation": "; ".join(parts) or "none"}


def _schema(schema: list[dict[str, Any]] | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Columns of a table, or the shape of images."""
    if isinstance(schema, dict):
        channels, height, width = schema["shape"]
        inner = schema.get("inner", schema)
        tiles = {} if inner is schema else {"tiles": "{1} x {2} pixels".format(*inner["shape"])}
        return {"Images": {"height": height, "width": width, "channels": channels, **tiles, **_backbone(inner)}}
    return {f"Columns ({len(schema)})": {column["name"]: _column(column) for column in schema}}


def _backbone(schema: dict[str, Any]) -> dict[str, Any]:
    """What describes patches, where not pixels are modelled."""
    if "backbone" not in schema:
        return {}
    rows, columns = schema["grid"]
    return {
        "backbone": schema["backbone"],
        "weights of it": schema["fingerprint"][:16],
        "patches": f"{rows} x {columns}, {len(schema['center'])} features each",
    }


def _threshold(threshold: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "value": f"{threshold['value']:.6g}",
        "rule": threshold["name"],
        "false-alarm rate": "none asked for" if threshold["fpr"] is None else f"{100 * threshold['fpr']:g} %",
        **threshold["parameters"],
    }
    if threshold["extrapolation"] is not None:
        rows["extrapolated by"] = extent(threshold)
    if threshold["labels"] is not None:
        rows["it is"] = chosen_on(threshold)
    return rows


def _groups(header: dict[str, Any]) -> dict[str, Any]:
    rows = {"calibration rows": f"{header['n_calibration']:,}"}
    groups = header["groups"]
    if groups is not None:
        rows["groups"] = f"{len(groups['names'])} of {groups['column']}"
        rows |= {f"threshold of {name}": f"{value:.6g}" for name, value in groups["thresholds"].items()}
    return rows


def _column(column: dict[str, Any]) -> str:
    if column["kind"] == "ignored":
        return "ignored"
    if column["kind"] == "real":
        return f"real, {column['low']:g} to {column['high']:g}"
    values = column["values"]
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values[:5]]
    shown = ", ".join(texts) + (", ..." if len(values) > 5 else "")
    return f"{column['kind']}, {len(values)} values: {shown}"
