"""Registration: a tokenizer is found, proved to be the model's own, and pinned. Or refused."""

from dataclasses import dataclass
from datetime import datetime

import msgspec

from steelyard.counting.known_tokenizers import difference_from, known_by_model
from steelyard.counting.libraries import open_tokenizer
from steelyard.counting.pin import Proof, Registered
from steelyard.counting.probe_texts import PROBES
from steelyard.counting.proof import TokenizerMismatch, prove, refuse_difference
from steelyard.counting.remote_count import RemoteCounter
from steelyard.counting.tokenizer_files import TokenizerFiles
from steelyard.errors import Refusal
from steelyard.metering.tokenizer import Tokenizer
from steelyard.timestamp import write_timestamp


class TokenizerUnproved(Refusal):
    """Nothing shows that this tokenizer is the model's own."""

    code = "tokenizer_unproved"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What can prove a tokenizer: a server to ask, the model's own folder, or somebody's word."""

    remote: RemoteCounter | None = None
    is_model_folder: bool = False
    is_taken_on_trust: bool = False


def prepare_registration(
    model: str, files: TokenizerFiles, evidence: Evidence, *, at: datetime
) -> Registered:
    """The registration of a tokenizer that is the model's own.

    A name that says what the model is has to agree with how that vocabulary counts, whatever else
    proves it. Raises TokenizerMismatch or TokenizerUnproved.
    """
    tokenizer = open_tokenizer(files.vocabulary, files.pin)
    pin = files.pin
    known = known_by_model(model)
    if known is not None and files.known_as is None and pin.format != "tokenizer.json":
        # A raw vocabulary does not say what the model's server puts around a prompt.
        added = known.prompt_tokens_added
        pin = msgspec.structs.replace(pin, prompt_tokens_added=added)
    if known is not None and (difference := difference_from(known, tokenizer)) is not None:
        raise refuse_difference(difference, whose=f"{model}'s own ({known.name})")
    proof = _prove_locally(files, tokenizer, evidence, known_name=known.name if known else None)
    if evidence.remote is not None:
        remote = evidence.remote
        # What a chat template puts around a text is told by no file; how much it is, by one letter.
        is_told = pin.format == "tokenizer.json" and remote.how != "chat"
        added = prove(tokenizer, remote, added=pin.prompt_tokens_added if is_told else None)
        if remote.how != "chat":
            pin = msgspec.structs.replace(pin, prompt_tokens_added=added)
        kind = "tokenize" if remote.how == "tokenize" else "usage"
        proof = Proof(kind=kind, against=remote.url, probes=len(PROBES))
    return Registered(
        model=model,
        pin=pin,
        proof=proof,
        registered_at=write_timestamp(at),
        known_as=files.known_as or (known.name if known else None),
        served_sha256=files.served_sha256,
    )


def _prove_locally(
    files: TokenizerFiles, tokenizer: Tokenizer, evidence: Evidence, *, known_name: str | None
) -> Proof:
    if known_name is not None:
        return Proof(kind="known", against=known_name, probes=len(PROBES))
    if evidence.is_model_folder:
        _check_size(files, tokenizer)
        return Proof(kind="same_folder")
    if evidence.remote is None and not evidence.is_taken_on_trust:
        raise TokenizerUnproved(
            "nothing shows that this tokenizer is the model's own; name the model's folder as "
            "--from, ask the model's server with --against URL, or take it on trust with --unproved"
        )
    return Proof(kind="none")


def _check_size(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """A model cannot be fed an id that it has no row for."""
    rows = files.vocabulary_size_stated
    if rows is None:
        raise TokenizerUnproved("the folder has no config.json, so it is not a model's folder")
    highest = max(max(tokenizer.encode(probe.text), default=0) for probe in PROBES)
    if highest >= rows:
        raise TokenizerMismatch(
            f"the tokenizer gives the id {highest}, but the model has only {rows} rows; "
            "it is not the model's own"
        )
