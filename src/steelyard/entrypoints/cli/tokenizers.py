"""`steelyard tokenizer add | list | show | verify | remove`: whose tokens are counted how."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.clock import SystemClock
from steelyard.counting.fast_path import FastTokenizer
from steelyard.counting.known_tokenizers import difference_from, known_tokenizers
from steelyard.counting.pin import LIBRARIES, Registered
from steelyard.counting.proof import refuse_difference
from steelyard.counting.registration import Evidence, prepare_registration
from steelyard.counting.registry import TokenizerRegistry
from steelyard.counting.remote_count import How, RemoteCounter
from steelyard.counting.tokenizer_files import read_tokenizer_files
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows
from steelyard.errors import SteelyardError
from steelyard.settings import read_settings

EXIT_DIFFERENCES = 2
SECRET_VARIABLE = "STEELYARD_UPSTREAM_SECRET"

tokenizers = typer.Typer(
    no_args_is_help=True, help="Tokenizers: pinned for each model, and proved to be its own."
)
ModelArgument = Annotated[str, typer.Argument(help="The name under which the model is served.")]


def register(application: typer.Typer) -> None:
    application.add_typer(tokenizers, name="tokenizer")


def open_registry() -> TokenizerRegistry:
    return TokenizerRegistry(read_settings().tokenizers_dir)


@tokenizers.command(
    "add",
    epilog="Example: `steelyard tokenizer add llama-2-7b --from ./llama-2-7b/tokenizer.model`",
)
def add(
    model: ModelArgument,
    source: Annotated[
        Path, typer.Option("--from", help="The model's folder, or a tokenizer's file.")
    ],
    against: Annotated[
        str | None, typer.Option(help="URL of the model's server, which counts the probes as well.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="How to ask it: tokenize, completion or chat (one token each).")
    ] = "tokenize",
    like: Annotated[
        str | None, typer.Option(help="For a file of ranks: whose splitting rule it has.")
    ] = None,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Take it on trust that this is the model's own.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Pin a model's tokenizer: files, hash, chat template, rules. A wrong one is refused.

    A secret that the server wants to see is read from `STEELYARD_UPSTREAM_SECRET`.
    """
    files = read_tokenizer_files(source, like=like)
    remote = None
    if against is not None:
        remote = RemoteCounter(against, model, _how(by), os.environ.get(SECRET_VARIABLE))
    is_model_folder = (source / "config.json").is_file()
    evidence = Evidence(remote, is_model_folder=is_model_folder, is_taken_on_trust=unproved)
    registered = prepare_registration(model, files, evidence, at=SystemClock().now())
    open_registry().add(registered, files)
    show(_document(registered), as_json=json, title="tokenizer registered")


@tokenizers.command("list", epilog="Example: `steelyard tokenizer list`")
def list_tokenizers(json: JsonFlag = False) -> None:
    """List the registered tokenizers."""
    rows = [_document(registered) for registered in open_registry().all()]
    columns = ["model", "family", "vocabulary", "chat", "proof", "sha256"]
    if not json:
        rows = [{**row, "sha256": row["sha256"][:12]} for row in rows]
    show_rows(rows, columns, as_json=json, empty="none yet: steelyard tokenizer add MODEL --from …")


@tokenizers.command("show", epilog="Example: `steelyard tokenizer show gpt-4o`")
def show_tokenizer(model: ModelArgument, json: JsonFlag = False) -> None:
    """Show what is pinned for a model."""
    show(_document(open_registry().get(model)), as_json=json)


@tokenizers.command("verify", epilog="Example: `steelyard tokenizer verify --json`")
def verify(
    model: Annotated[str | None, typer.Argument(help="Only this model's.")] = None,
    json: JsonFlag = False,
) -> None:
    """Read every file again, compare its hash, count the probes, and check the fast path.

    Exit status 0 says that all are right, 2 that one is not.
    """
    registry = open_registry()
    chosen = [registry.get(model)] if model else registry.all()
    rows = [_verdict(registry, registered) for registered in chosen]
    show_rows(rows, ["model", "verdict", "fast_path", "reason"], as_json=json, empty="none yet")
    if any(row["verdict"] != "right" for row in rows):
        raise typer.Exit(EXIT_DIFFERENCES)


@tokenizers.command("remove", epilog="Example: `steelyard tokenizer remove gpt-4o`")
def remove(model: ModelArgument, json: JsonFlag = False) -> None:
    """Forget a model's tokenizer; what was recounted with it stays as it is."""
    show(_document(open_registry().remove(model)), as_json=json, title="tokenizer removed")


def _how(by: str) -> How:
    match by:
        case "tokenize" | "completion" | "chat":
            return by
        case _:
            raise typer.BadParameter(f"{by!r} is none of tokenize, completion, chat")


def _verdict(registry: TokenizerRegistry, registered: Registered) -> dict[str, Any]:
    row: dict[str, Any] = {"model": registered.model, "verdict": "right", "fast_path": None}
    try:
        opened = registry.open(registered.model)
        row["fast_path"] = "yes" if isinstance(opened.tokenizer, FastTokenizer) else "no"
        known = known_tokenizers().get(registered.known_as or "")
        if known and (difference := difference_from(known, opened.tokenizer)):
            raise refuse_difference(difference, whose=known.name)
    except SteelyardError as error:
        row |= {"verdict": "wrong", "reason": str(error), "code": error.code}
    return row


def _document(registered: Registered) -> dict[str, Any]:
    pin, proof = registered.pin, registered.proof
    return {
        "model": registered.model,
        "sha256": pin.sha256,
        "family": pin.family,
        "vocabulary": registered.known_as,
        "library": LIBRARIES[pin.format],
        "format": pin.format,
        "vocabulary_sha256": pin.vocabulary_sha256,
        "chat": pin.chat,
        "chat_template_sha256": pin.chat_template_sha256,
        "special_tokens_in_text": pin.specials_in_text,
        "tokens_added_to_a_prompt": pin.prompt_tokens_added,
        "proof": proof.kind,
        "proved_against": proof.against,
        "probes": proof.probes or None,
        "registered_at": registered.registered_at,
    }
