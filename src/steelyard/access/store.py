"""What access needs from its store."""

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from steelyard.access.limits import NO_LIMITS, LimitScope, LimitSet
from steelyard.access.tenant import Department, Organisation, Project
from steelyard.access.virtual_key import KeySecret, VirtualKey
from steelyard.errors import Refusal


class TenantNotFound(Refusal):
    """There is no such organisation or department. 'steelyard org list' shows what there is."""

    code = "tenant_not_found"


class ProjectNotFound(Refusal):
    """There is no such project. 'steelyard project list' shows what there is."""

    code = "project_not_found"


class KeyNotFound(Refusal):
    """There is no such key. 'steelyard key list' shows what there is."""

    code = "key_not_found"


class NameTaken(Refusal):
    """The name is in use already."""

    code = "name_taken"


class BudgetTaken(Refusal):
    """There is a budget of this kind already. End it before you set another."""

    code = "budget_taken"


class BudgetNotFound(Refusal):
    """There is no such budget. 'steelyard budget list' shows what there is."""

    code = "budget_not_found"


class AccessStore(Protocol):
    """Keeps tenants, projects and virtual keys. What is inserted has a name of its own, or
    NameTaken is raised."""

    def insert_organisation(self, organisation: Organisation) -> None: ...

    def update_organisation(self, organisation: Organisation) -> None:
        """Keep its time zone, tax and plan."""
        ...

    def insert_department(self, department: Department) -> None: ...

    def insert_project(self, project: Project) -> None: ...

    def insert_key(
        self, key: VirtualKey, *, secret_hash: str, limits: LimitSet = NO_LIMITS
    ) -> None: ...

    def change_key(self, key: VirtualKey) -> None:
        """Keep when it expires."""
        ...

    def rotate_key(self, key: VirtualKey, *, secret_hash: str, old_ends_at: datetime) -> None:
        """Give a key a new secret and its hint; the one that it had works until it ends."""
        ...

    def move_key(self, key: VirtualKey) -> None:
        """Keep its department and project. Requests that are running stay where they were."""
        ...

    def revoke_key(self, key_id: str, *, at: datetime) -> VirtualKey:
        """Revoke a key by id; raises KeyNotFound. Revoking twice changes nothing."""
        ...

    def organisations(self) -> list[Organisation]: ...

    def departments(self) -> list[Department]: ...

    def projects(self) -> list[Project]: ...

    def all_keys(self) -> list[tuple[VirtualKey, str]]:
        """Every key with the hash of its secret."""
        ...

    def secrets(self) -> list[KeySecret]:
        """The secret of every key, and those that were replaced."""
        ...

    def revoked_keys(self, *, since: datetime) -> frozenset[str]:
        """The ids of the keys that were revoked since then: quick to read, however many there are
        that were not."""
        ...

    def set_limits(self, scope: LimitScope, scope_id: str, limits: LimitSet) -> None:
        """Keep what a place, or a model, allows; it replaces what was said before."""
        ...

    def limits(self) -> Mapping[tuple[LimitScope, str], LimitSet]:
        """What every place allows that allows anything."""
        ...

    def find_organisation(self, name: str) -> Organisation:
        """Raises TenantNotFound."""
        ...

    def find_department(self, path: str) -> Department:
        """Find 'organisation/department'; raises TenantNotFound."""
        ...

    def find_project(self, path: str) -> Project:
        """Find 'organisation/department/project'; raises ProjectNotFound."""
        ...

    def find_key(self, wanted: str) -> VirtualKey:
        """Find a key by its id or 'organisation/department/key'; raises KeyNotFound."""
        ...

    def revision(self) -> int:
        """Grows with every change, so that a reader knows when to read again."""
        ...
