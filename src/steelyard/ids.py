"""Identifiers: how they are made and what they look like."""

import hashlib
import re
import secrets

from uuid_utils import uuid7

from steelyard.errors import Refusal

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class NameMalformed(Refusal):
    """A name is 1 to 63 lower-case letters, digits and dashes, and begins and ends with no dash."""

    code = "name_malformed"


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and in the order of its making."""
    return str(uuid7())


def derived_id(name: str, *, after: str) -> str:
    """A UUIDv8 (RFC 9562) that always is the same for a name, in order beside the id `after`."""
    digest = hashlib.sha256(f"{after}/{name}".encode()).hexdigest()
    moment = after.replace("-", "")[:12]
    return f"{moment[:8]}-{moment[8:]}-8{digest[:3]}-a{digest[3:6]}-{digest[6:18]}"


def new_secret() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def read_name(text: str) -> str:
    """Accept a name that is safe in a path, a URL and a file name."""
    if not _SLUG.fullmatch(text):
        raise NameMalformed(f"{text!r} is not a name: {NameMalformed.__doc__}")
    return text
