"""Reads the configuration file: settings, and the tables of upstreams, models and routing.

Every mistake is told at once, with its line and its path. Nothing here opens a connection.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from steelyard.errors import Failure, Refusal
from steelyard.gateway.routing.rules import (
    ModelRules,
    RoutingRules,
    RoutingTable,
    UpstreamRules,
)
from steelyard.gateway.upstreams.habits import PATHS
from steelyard.gateway.upstreams.kinds import KINDS
from steelyard.settings import ROUTING_TABLES

T = TypeVar("T")
_HEADER: Final = re.compile(r"^\s*\[+\s*(?P<path>[^\]]+?)\s*\]+")
_QUOTES: Final = re.compile(r"[\"']")


class ConfigurationMalformed(Refusal):
    """The configuration file is not TOML."""

    code = "configuration_malformed"


class ConfigurationInvalid(Refusal):
    """The configuration file says something that cannot be."""

    code = "configuration_invalid"


class CredentialMissing(Refusal):
    """An upstream's key is not where the configuration says."""

    code = "credential_missing"


class ConfigurationUnreadable(Failure):
    """The configuration file cannot be read."""

    code = "configuration_unreadable"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a file says, and the hash of what it was made from."""

    rules: RoutingRules | None
    sha256: str


@dataclass(frozen=True, slots=True)
class _Mistake:
    path: tuple[str, ...]
    message: str


def read_configuration(path: Path) -> Configuration:
    """Read and check a file; `rules` is None where it has no upstreams.

    Raises ConfigurationUnreadable, ConfigurationMalformed or ConfigurationInvalid.
    """
    try:
        written = path.read_bytes()
    except OSError as error:
        raise ConfigurationUnreadable(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = written.decode()
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationMalformed(f"{path}: {error}") from error
    mistakes: list[_Mistake] = []
    rules = _read_rules(document, mistakes)
    if not mistakes and rules is not None:
        mistakes += _contradictions(rules)
    if mistakes:
        told = [_tell(mistake, text) for mistake in mistakes]
        raise ConfigurationInvalid("\n".join([f"{path}:", *told]) if told[1:] else told[0])
    return Configuration(rules, hashlib.sha256(written).hexdigest())


def wants_engine() -> bool:
    """Whether the engine of this machine is an upstream: unless a file says which there are, or one
    of those is an engine without a URL."""
    named = os.environ.get("STEELYARD_CONFIG")
    rules = read_configuration(Path(named)).rules if named else None
    return rules is None or any(
        upstream.kind == "engine" and upstream.url is None for upstream in rules.upstreams.values()
    )


def read_credential(name: str, rules: UpstreamRules, environment: Mapping[str, str]) -> str | None:
    """The key that an upstream wants; raises CredentialMissing, which never tells it."""
    if rules.key_env is not None:
        secret = environment.get(rules.key_env, "").strip()
        if not secret:
            raise CredentialMissing(f"upstreams.{name}.key_env: {rules.key_env} is not set")
    elif rules.key_file is not None:
        try:
            secret = Path(rules.key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            place = f"upstreams.{name}.key_file: {rules.key_file}"
            raise CredentialMissing(f"{place} cannot be read") from error
        if not secret:
            raise CredentialMissing(f"upstreams.{name}.key_file: {rules.key_file} is empty")
    else:
        return None
    if not (secret.isascii() and secret.isprintable()):
        raise CredentialMissing(f"upstreams.{name}: its key is more than one line of ASCII")
    return secret


def check_credentials(rules: RoutingRules) -> None:
    """Raises CredentialMissing for the first upstream whose key is not there."""
    for name, upstream in rules.upstreams.items():
        read_credential(name, upstream, os.environ)


def _read_rules(document: dict[str, Any], mistakes: list[_Mistake]) -> RoutingRules | None:
    """The tables one by one, so that a mistake in one does not hide those in the next."""
    if not any(name in document for name in ROUTING_TABLES):
        return None
    upstreams = _read_tables(document, "upstreams", UpstreamRules, mistakes)
    models = _read_tables(document, "models", ModelRules, mistakes)
    routing = _read_table(document.get("routing", {}), ("routing",), RoutingTable, mistakes)
    if not upstreams and not mistakes:
        mistakes.append(_Mistake(("upstreams",), "at least one upstream is needed"))
    if mistakes or routing is None:
        return None
    return RoutingRules(upstreams=upstreams, models=models, routing=routing)


def _read_tables(
    document: dict[str, Any], table: str, kind: type[T], mistakes: list[_Mistake]
) -> dict[str, T]:
    given: Any = document.get(table, {})
    if not isinstance(given, dict):
        mistakes.append(_Mistake((table,), "must be tables with names"))
        return {}
    found: dict[str, T] = {}
    named: dict[str, Any] = msgspec.convert(given, dict[str, Any])
    for name, fields in named.items():
        read = _read_table(fields, (table, name), kind, mistakes)
        if read is not None:
            found[name] = read
    return found


def _read_table(
    fields: Any, path: tuple[str, ...], kind: type[T], mistakes: list[_Mistake]
) -> T | None:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        inner = tuple(part for part in place.rstrip("`").split(".") if part)
        if inner and inner[0].startswith("["):
            inner = ()
        unknown = re.search(r"unknown field `([^`]+)`", message)
        named = (unknown[1],) if unknown else ()
        mistakes.append(_Mistake((*path, *inner, *named), message))
        return None


def _contradictions(rules: RoutingRules) -> Iterator[_Mistake]:
    for name, upstream in rules.upstreams.items():
        yield from _of_upstream(("upstreams", name), upstream)
    taken = dict.fromkeys(rules.models, "a model")
    for name, model in rules.models.items():
        path = ("models", name)
        yield from _of_model(path, model, rules)
        for alias in model.aliases:
            if alias in taken:
                message = f"{alias!r} is already the name of {taken[alias]}"
                yield _Mistake((*path, "aliases"), message)
            taken.setdefault(alias, f"an alias of {name!r}")


def _of_upstream(path: tuple[str, ...], rules: UpstreamRules) -> Iterator[_Mistake]:
    kind = KINDS[rules.kind]
    if rules.url is None and kind.url is None and rules.kind != "engine":
        yield _Mistake((*path, "url"), f"an upstream of kind {rules.kind} needs one")
    if rules.url is not None:
        parts = urlsplit(rules.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            yield _Mistake((*path, "url"), "must begin with http:// or https:// and name a host")
        elif not _names_a_server(parts):
            yield _Mistake((*path, "url"), "has a host or a port that cannot be")
        elif parts.username is not None or parts.query or parts.fragment:
            yield _Mistake((*path, "url"), "must have no user, query or fragment in it")
    if rules.key_env is not None and rules.key_file is not None:
        yield _Mistake((*path, "key_file"), "give key_env or key_file, not both")
    if rules.api_version is not None and rules.kind != "azure-openai":
        yield _Mistake((*path, "api_version"), "only an upstream of kind azure-openai has one")
    for served in rules.paths or ():
        if served not in PATHS:
            message = f"{served!r} is none of {', '.join(sorted(PATHS))}"
            yield _Mistake((*path, "paths"), message)


def _names_a_server(parts: SplitResult) -> bool:
    """Whether host and port could be a server's; the system of names has its own rules."""
    try:
        (parts.hostname or "").encode("idna")
        return parts.port != 0
    except ValueError:
        return False


def _of_model(path: tuple[str, ...], model: ModelRules, rules: RoutingRules) -> Iterator[_Mistake]:
    for deployment in model.deployments:
        upstream = rules.upstreams.get(deployment.upstream)
        if upstream is None:
            message = f"there is no upstream {deployment.upstream!r}"
            yield _Mistake((*path, "deployments"), message)
        elif model.context_tokens is None and not KINDS[upstream.kind].tells_context:
            message = f"is needed: an upstream of kind {upstream.kind} does not tell it"
            yield _Mistake((*path, "context_tokens"), message)
            return
    for fallback in model.fallbacks:
        if fallback not in rules.models:
            message = f"there is no model {fallback!r} in this file"
            yield _Mistake((*path, "fallbacks"), message)
        elif fallback == path[-1]:
            yield _Mistake((*path, "fallbacks"), "a model cannot fall back on itself")


def _tell(mistake: _Mistake, text: str) -> str:
    line = _line_of(mistake.path, text)
    place = ".".join(mistake.path).replace(".[", "[")
    return f"line {line}, {place}: {mistake.message}" if line else f"{place}: {mistake.message}"


def _line_of(path: tuple[str, ...], text: str) -> int | None:
    """The line of a key, or of the table that it is or should be in."""
    keys = [part.partition("[")[0] for part in path]
    begins, found, depth = (), None, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            begins = _split_keys(header["path"])
            here = begins
        else:
            here = (*begins, *_split_keys(line.partition("=")[0])) if "=" in line else ()
        if len(here) > depth and here == tuple(keys[: len(here)]):
            found, depth = number, len(here)
    return found


def _split_keys(written: str) -> tuple[str, ...]:
    """The parts of a dotted key; dots within quotes are not between parts."""
    parts = re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", written)
    return tuple(_QUOTES.sub("", part) for part in parts)
