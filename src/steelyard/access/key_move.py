"""Moving a virtual key to another department or project of its organisation."""

from dataclasses import replace

from steelyard.access.tenant import Department, Project
from steelyard.access.virtual_key import VirtualKey
from steelyard.errors import Refusal


class KeyMoveRefused(Refusal):
    """A key stays in its organisation. Make a new key in the other one, and revoke this one."""

    code = "key_move_refused"


def moved_key(key: VirtualKey, *, department: Department, project: Project | None) -> VirtualKey:
    """The key in another department or project; raises KeyMoveRefused."""
    if department.organisation.id != key.department.organisation.id:
        raise KeyMoveRefused
    return replace(key, department=department, project=project)
