"""What access needs from its store."""

from datetime import datetime
from typing import Protocol

from steelyard.access.tenant import Department, Organisation
from steelyard.access.virtual_key import VirtualKey
from steelyard.errors import Refusal


class TenantNotFound(Refusal):
    """There is no such organisation or department. 'steelyard org list' shows what there is."""

    code = "tenant_not_found"


class KeyNotFound(Refusal):
    """There is no such key. 'steelyard key list' shows what there is."""

    code = "key_not_found"


class NameTaken(Refusal):
    """The name is in use already."""

    code = "name_taken"


class AccessStore(Protocol):
    """Keeps tenants and virtual keys."""

    def insert_organisation(self, organisation: Organisation) -> None: ...

    def insert_department(self, department: Department) -> None: ...

    def insert_key(self, key: VirtualKey, *, secret_hash: str) -> None: ...

    def revoke_key(self, key_id: str, *, at: datetime) -> VirtualKey:
        """Revoke a key by id; raises KeyNotFound. Revoking twice changes nothing."""
        ...

    def organisations(self) -> list[Organisation]: ...

    def departments(self) -> list[Department]: ...

    def all_keys(self) -> list[tuple[VirtualKey, str]]:
        """Every key with the hash of its secret."""
        ...

    def find_organisation(self, name: str) -> Organisation:
        """Raises TenantNotFound."""
        ...

    def find_department(self, path: str) -> Department:
        """Find 'organisation/department'; raises TenantNotFound."""
        ...

    def revision(self) -> int:
        """Grows with every change, so that a reader knows when to read again."""
        ...
