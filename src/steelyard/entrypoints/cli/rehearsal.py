"""`steelyard scripted-upstream`: an upstream without a model, to try a gateway against."""

from pathlib import Path
from typing import Annotated

import typer

from steelyard.entrypoints.scripted_upstream.script import (
    ScriptMalformed,
    ScriptPlayer,
    read_script,
)


def register(application: typer.Typer) -> None:
    application.command(
        "scripted-upstream", epilog="Example: `steelyard scripted-upstream script.yaml --port 9000`"
    )(scripted_upstream)


def scripted_upstream(
    script: Annotated[Path, typer.Argument(help="The script, as YAML.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9000,
) -> None:
    """Start a server that plays a script: answers, delays, faults, quirks. It has no model."""
    from steelyard.entrypoints.scripted_upstream.server import run_scripted_upstream

    try:
        text = script.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptMalformed(f"the script {script} cannot be read: {error}") from error
    run_scripted_upstream(ScriptPlayer(read_script(text)), host=host, port=port)
