"""Finds the virtual key that a secret stands for, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from steelyard.access.virtual_key import (
    PREFIX,
    SECRET_CHARACTERS_MAX,
    KeyExpired,
    KeyMissing,
    KeyRevoked,
    KeySecret,
    KeyUnknown,
    VirtualKey,
    hash_secret,
)
from steelyard.clock import Clock
from steelyard.gateway.snapshot import Snapshot

BEARER: Final = "bearer "
SecretsByHash = Mapping[str, KeySecret]


@dataclass(slots=True)
class GivenBefore:
    """The Authorization header that came last over a connection, and the hash of the secret in it:
    clients give the same with every request, and hashing is half of finding the key."""

    authorization: str = ""
    secret_hash: str = ""

    def is_same(self, authorization: str) -> bool:
        is_there = bool(self.secret_hash) and authorization.isascii()
        return is_there and compare_digest(authorization, self.authorization)


@dataclass(slots=True)
class KeyDirectory:
    """Looks keys up by the keyed hash of their secret."""

    snapshot: Snapshot[SecretsByHash]
    # Those that were revoked not long ago: where there are many keys, they are known much sooner
    # than all of them have been read again.
    revoked: Snapshot[frozenset[str]]
    pepper: bytes
    clock: Clock

    async def find(
        self, authorization: str | None, *, before: GivenBefore | None = None
    ) -> VirtualKey:
        """The live key of an Authorization header; raises KeyMissing, KeyUnknown, KeyRevoked or
        KeyExpired. What was given `before` over the same connection is not hashed again."""
        secret_hash = self._hash_in(authorization, before)
        secret = self.snapshot.copy.get(secret_hash)
        if secret is None:
            # It may have been made a moment ago.
            await self.snapshot.refresh()
            secret = self.snapshot.copy.get(secret_hash)
        if secret is None:
            raise KeyUnknown
        key = secret.key
        if key.revoked_at is not None or key.id in self.revoked.copy:
            raise KeyRevoked(f"the key {key.name!r} was revoked; ask for a new one")
        if secret.ends_at is not None and secret.ends_at <= self.clock.now():
            raise KeyExpired(f"the key {key.name!r} has a new secret, and this one has ended")
        if key.expires_at is not None and key.expires_at <= self.clock.now():
            raise KeyExpired(f"the key {key.name!r} has expired; ask for a new one")
        return key

    def _hash_in(self, authorization: str | None, before: GivenBefore | None) -> str:
        if authorization is None:
            raise KeyMissing
        if before is not None and before.is_same(authorization):
            return before.secret_hash
        secret_hash = hash_secret(_secret_in(authorization), pepper=self.pepper)
        if before is not None and authorization.isascii():
            before.authorization, before.secret_hash = authorization, secret_hash
        return secret_hash


def _secret_in(authorization: str) -> str:
    if not authorization.lower().startswith(BEARER):
        raise KeyMissing
    secret = authorization[len(BEARER) :].strip()
    # What cannot be a key of ours is not worth a look into the books.
    if not secret.startswith(PREFIX) or len(secret) > SECRET_CHARACTERS_MAX:
        raise KeyUnknown
    return secret
