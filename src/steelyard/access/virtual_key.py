"""Virtual keys: secrets that we issue. Only a keyed hash of a secret is ever stored."""

import hmac
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from steelyard.access.tenant import Department, Project
from steelyard.errors import Refusal
from steelyard.ids import new_secret
from steelyard.metering.usage_event import DisconnectPolicy

PREFIX = "sk-steelyard-"
SECRET_CHARACTERS_MAX = 128


class KeyMissing(Refusal):
    """No key was given. Send it as 'Authorization: Bearer sk-steelyard-...'."""

    code = "key_missing"


class KeyUnknown(Refusal):
    """This key is not one of ours. Check for a copying mistake, or ask for a new key."""

    code = "key_unknown"


class KeyRevoked(Refusal):
    """This key was revoked. Ask for a new one."""

    code = "key_revoked"


class KeyExpired(Refusal):
    """This key, or this secret of it, has expired. Ask for a new one."""

    code = "key_expired"


@dataclass(frozen=True, slots=True)
class VirtualKey:
    """What a secret stands for: a department, perhaps a project of it."""

    id: str
    name: str
    department: Department
    hint: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = None
    project: Project | None = None
    # What its callers are charged when they leave; None where the model or the gateway decides.
    disconnect_policy: DisconnectPolicy | None = None
    # How old an answer of the cache may be for its requests, in seconds; None: it uses none.
    cache_ttl_s: int | None = None

    @property
    def path(self) -> str:
        return f"{self.department.path}/{self.name}"


@dataclass(frozen=True, slots=True)
class KeySecret:
    """A secret of a key, by its hash; one that was replaced works until it ends."""

    secret_hash: str
    key: VirtualKey
    ends_at: datetime | None = None


def make_secret() -> str:
    """A new secret of 256 random bits, recognisable by its prefix."""
    return PREFIX + new_secret()


def hash_secret(secret: str, *, pepper: bytes) -> str:
    """HMAC-SHA-256, so that a stolen database opens nothing."""
    # A copy of what has the pepper in it already takes half the time, and keeps the interpreter's
    # lock, which `hmac.digest` gives away in the midst of a request.
    keyed = _keyed(pepper).copy()
    keyed.update(secret.encode())
    return keyed.hexdigest()


@lru_cache(maxsize=4)
def _keyed(pepper: bytes) -> hmac.HMAC:
    return hmac.new(pepper, digestmod="sha256")


def hint_of(secret: str) -> str:
    """Enough of a secret to recognise it by, and no more."""
    return f"{secret[: len(PREFIX) + 4]}…{secret[-2:]}"
