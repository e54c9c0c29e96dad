"""Templates of this folder as pages that need nothing else: no network, no other files."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> str:
    """Page of a template in this folder, with the style and the script of the report inside."""
    folder = files("vae_anomaly.report")
    css, script = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        # The policy lets this one script run and no other.
        script_hash=Markup("sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        style=Markup(css),
        script=Markup(script),
        **values,
    )
