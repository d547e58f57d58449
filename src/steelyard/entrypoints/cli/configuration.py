"""`steelyard config check`: reads a configuration file and says what a gateway would make of it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.app.configuration import check_credentials, read_configuration
from steelyard.entrypoints.cli.output import JsonFlag, print_json, show, show_rows
from steelyard.gateway.routing.rules import RoutingRules
from steelyard.settings import read_settings


def register(application: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="The configuration file.")
    group.command("check", epilog="Example: `steelyard config check steelyard.toml`")(check)
    application.add_typer(group, name="config")


def check(
    file: Annotated[Path, typer.Argument(help="The file that STEELYARD_CONFIG will name.")],
    without_keys: Annotated[
        bool,
        typer.Option("--without-keys", help="Do not look whether the upstreams' keys are there."),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Check a configuration file: settings, upstreams, models, and whether their keys are there."""
    configuration = read_configuration(file)
    with _named(file):
        read_settings()
    rules = configuration.rules
    if rules is not None and not without_keys:
        check_credentials(rules)
    models = _models(rules) if rules is not None else []
    if json:
        names = list(rules.upstreams) if rules is not None else []
        document = {"sha256": configuration.sha256, "upstreams": names, "models": models}
        print_json(document)
        return
    show({"sha256": configuration.sha256}, as_json=False, title=f"{file} is good")
    columns = ["model", "upstream", "upstream_model", "weight", "aliases", "fallbacks"]
    empty = "no models of its own: the engine's are served" if rules is None else "no models"
    show_rows(models, columns, as_json=False, empty=empty, right=["weight"])


@contextmanager
def _named(file: Path) -> Generator[None]:
    """Let this be the file of the settings."""
    before = os.environ.get("STEELYARD_CONFIG")
    os.environ["STEELYARD_CONFIG"] = str(file)
    try:
        yield
    finally:
        del os.environ["STEELYARD_CONFIG"]
        if before is not None:
            os.environ["STEELYARD_CONFIG"] = before


def _models(rules: RoutingRules) -> list[dict[str, Any]]:
    """One row for each deployment."""
    return [
        {
            "model": name,
            "upstream": deployment.upstream,
            "kind": rules.upstreams[deployment.upstream].kind,
            "upstream_model": deployment.model or name,
            "weight": deployment.weight,
            "aliases": ", ".join(model.aliases),
            "fallbacks": ", ".join(model.fallbacks),
        }
        for name, model in rules.models.items()
        for deployment in model.deployments
    ]
