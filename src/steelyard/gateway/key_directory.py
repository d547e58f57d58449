"""Finds the virtual key that a secret stands for, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from steelyard.access.virtual_key import (
    PREFIX,
    SECRET_CHARACTERS_MAX,
    KeyMissing,
    KeyRevoked,
    KeyUnknown,
    VirtualKey,
    hash_secret,
)
from steelyard.gateway.snapshot import Snapshot

BEARER: Final = "bearer "
KeysByHash = Mapping[str, VirtualKey]


@dataclass(slots=True)
class KeyDirectory:
    """Looks keys up by the keyed hash of their secret."""

    snapshot: Snapshot[KeysByHash]
    pepper: bytes

    async def find(self, authorization: str | None) -> VirtualKey:
        """The live key of an Authorization header; raises KeyMissing, KeyUnknown or KeyRevoked."""
        secret = _secret_in(authorization)
        secret_hash = hash_secret(secret, pepper=self.pepper)
        key = self.snapshot.copy.get(secret_hash)
        if key is None:
            # It may have been made a moment ago.
            await self.snapshot.refresh()
            key = self.snapshot.copy.get(secret_hash)
        if key is None:
            raise KeyUnknown
        if key.revoked_at is not None:
            raise KeyRevoked(f"the key {key.name!r} was revoked; ask for a new one")
        return key


def _secret_in(authorization: str | None) -> str:
    if authorization is None or not authorization.lower().startswith(BEARER):
        raise KeyMissing
    secret = authorization[len(BEARER) :].strip()
    # What cannot be a key of ours is not worth a look into the books.
    if not secret.startswith(PREFIX) or len(secret) > SECRET_CHARACTERS_MAX:
        raise KeyUnknown
    return secret
