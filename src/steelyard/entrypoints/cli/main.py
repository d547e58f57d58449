"""The command's root: puts the nouns together, and turns errors into one clear line."""

import sys
from typing import Annotated

import typer
from rich.text import Text

from steelyard import __version__
from steelyard.entrypoints.cli import (
    audits,
    budgets,
    chargebacks,
    configuration,
    doctor,
    exports,
    funds,
    invoices,
    keys,
    leases,
    limits,
    prices,
    prices_import,
    re_ratings,
    refunds,
    rehearsal,
    reports,
    services,
    suggestions,
    suspense,
    tenants,
    tokenizers,
    tokens,
    upstream_costs,
)
from steelyard.entrypoints.cli.output import console, error_console, print_json
from steelyard.entrypoints.logs import configure_logs
from steelyard.errors import Refusal, SteelyardError

EXIT_REFUSED = 1
EXIT_FAILED = 3

application = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Serve AI models, count every token as the model counts it, and charge for exactly that.\n\n"
        "Start with `steelyard init`, then `steelyard serve`. Every command takes `--help`; those "
        "that print anything take `--json`. Settings are environment variables: "
        "`STEELYARD_DATA_DIR` is the folder of the books."
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"steelyard {__version__}")
        raise typer.Exit


@application.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version


for module in (
    services,
    rehearsal,
    tenants,
    keys,
    limits,
    funds,
    invoices,
    chargebacks,
    upstream_costs,
    refunds,
    leases,
    suspense,
    budgets,
    prices,
    prices_import,
    re_ratings,
    reports,
    suggestions,
    tokenizers,
    tokens,
    exports,
    audits,
    configuration,
    doctor,
):
    module.register(application)


def run() -> None:
    """The console script."""
    # Standard output is for the answer.
    configure_logs("cli")
    try:
        application()
    except SteelyardError as error:
        if "--json" in sys.argv:
            print_json({"error": {"code": error.code, "message": str(error)}})
        error_console.print(Text(f"steelyard: {error} [{error.code}]", style="red"))
        sys.exit(EXIT_REFUSED if isinstance(error, Refusal) else EXIT_FAILED)
