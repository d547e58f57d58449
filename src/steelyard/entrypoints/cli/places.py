"""How the places of the tree are named on the command line, and found in the books."""

from datetime import datetime
from typing import Annotated

import typer

from steelyard.access.budget import BudgetScope
from steelyard.access.store import AccessStore, ProjectNotFound
from steelyard.access.tenant import Department, Organisation, Project
from steelyard.access.virtual_key import VirtualKey
from steelyard.timestamp import read_timestamp

TenantArgument = Annotated[str, typer.Argument(help="organisation, or organisation/department")]
PlaceArgument = Annotated[
    str, typer.Argument(help="organisation, /department, and /project or (with --key) /key")
]
Tenant = Organisation | Department
Place = Organisation | Department | Project | VirtualKey


def find_tenant(access: AccessStore, name: str) -> Tenant:
    """The organisation or department of this name; raises TenantNotFound."""
    return access.find_department(name) if "/" in name else access.find_organisation(name)


def find_place(access: AccessStore, name: str, *, is_key: bool) -> Place:
    """Any place of the tree; raises TenantNotFound, ProjectNotFound or KeyNotFound."""
    if is_key:
        return access.find_key(name)
    return access.find_project(name) if name.count("/") > 1 else find_tenant(access, name)


def find_key_place(access: AccessStore, name: str) -> tuple[Department, Project | None]:
    """Where a key belongs: a department, or a project of one."""
    if name.count("/") < 2:
        return access.find_department(name), None
    project = access.find_project(name)
    return project.department, project


def find_project_of(access: AccessStore, department: Department, name: str) -> Project:
    """A project by its own name, or by its whole path; raises ProjectNotFound."""
    project = access.find_project(name if "/" in name else f"{department.path}/{name}")
    if project.department.id != department.id:
        raise ProjectNotFound(f"{project.path} is no project of {department.path}")
    return project


def scope_of(place: Place) -> BudgetScope:
    if isinstance(place, Organisation):
        return "organisation"
    if isinstance(place, Department):
        return "department"
    return "project" if isinstance(place, Project) else "key"


def paths_by_id(access: AccessStore) -> dict[str, str]:
    """What the ids of the tree are called."""
    places = (
        *access.organisations(),
        *access.departments(),
        *access.projects(),
        *(key for key, _ in access.all_keys()),
    )
    return {place.id: place.path for place in places}


def read_moment(text: str | None) -> datetime | None:
    """A moment as options give it."""
    if text is None:
        return None
    try:
        return read_timestamp(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it as 2027-01-01T00:00:00Z") from error


def organisation_of(place: Place) -> Organisation:
    if isinstance(place, Organisation):
        return place
    return (place if isinstance(place, Department) else place.department).organisation
