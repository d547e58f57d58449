"""The store of tenants, projects and virtual keys."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from steelyard.access.limits import NO_LIMITS, LimitScope, LimitSet
from steelyard.access.store import KeyNotFound, NameTaken, ProjectNotFound, TenantNotFound
from steelyard.access.tenant import Department, Organisation, Project
from steelyard.access.virtual_key import KeySecret, VirtualKey
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.limit_rows import read_limits, write_limits
from steelyard.storage.prepared import PreparedStatement

TOPIC: Final = "access"
# Every gateway asks for it several times a second.
_REVISION = PreparedStatement(
    select(schema.revisions.c.revision).where(schema.revisions.c.topic == bindparam("topic"))
)

_organisations, _departments = schema.organisations, schema.departments
_projects, _keys = schema.projects, schema.virtual_keys
_ORGANISATION_COLUMNS: Final = tuple(c.label(f"o_{c.name}") for c in _organisations.c)
_DEPARTMENT_COLUMNS: Final = tuple(c.label(f"d_{c.name}") for c in _departments.c)
_PROJECT_COLUMNS: Final = tuple(c.label(f"p_{c.name}") for c in _projects.c)


class SqlAccessStore:
    """Implements AccessStore; each call is a unit of work of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert_organisation(self, organisation: Organisation) -> None:
        row = {
            "id": organisation.id,
            "name": organisation.name,
            "currency": organisation.currency,
            "time_zone": organisation.time_zone,
            "tax_ppm": organisation.tax_ppm,
            "plan": organisation.plan,
            "created_at": organisation.created_at,
        }
        self._insert(_organisations, row, what=f"an organisation named {organisation.name!r}")

    def update_organisation(self, organisation: Organisation) -> None:
        changed = {
            "time_zone": organisation.time_zone,
            "tax_ppm": organisation.tax_ppm,
            "plan": organisation.plan,
        }
        with self._database.write() as connection:
            connection.execute(
                update(_organisations)
                .where(_organisations.c.id == organisation.id)
                .values(**changed)
            )
            _bump(connection)

    def insert_department(self, department: Department) -> None:
        row = {
            "id": department.id,
            "organisation_id": department.organisation.id,
            "name": department.name,
            "pays_from": department.pays_from,
            "created_at": department.created_at,
        }
        self._insert(_departments, row, what=f"a department {department.path!r}")

    def insert_project(self, project: Project) -> None:
        row = {
            "id": project.id,
            "department_id": project.department.id,
            "name": project.name,
            "created_at": project.created_at,
        }
        self._insert(_projects, row, what=f"a project {project.path!r}")

    def insert_key(
        self, key: VirtualKey, *, secret_hash: str, limits: LimitSet = NO_LIMITS
    ) -> None:
        row = {
            "id": key.id,
            "department_id": key.department.id,
            "project_id": key.project.id if key.project else None,
            "name": key.name,
            "secret_hash": secret_hash,
            "hint": key.hint,
            "disconnect_policy": key.disconnect_policy,
            "cache_ttl_s": key.cache_ttl_s,
            "created_at": key.created_at,
            "revoked_at": None,
            "expires_at": key.expires_at,
        }
        self._insert(
            _keys,
            row,
            what=f"a key {key.path}",
            then=lambda connection: write_limits(connection, "key", key.id, limits),
        )

    def change_key(self, key: VirtualKey) -> None:
        changed = {"expires_at": key.expires_at, "cache_ttl_s": key.cache_ttl_s}
        with self._database.write() as connection:
            connection.execute(update(_keys).where(_keys.c.id == key.id).values(**changed))
            _bump(connection)

    def rotate_key(self, key: VirtualKey, *, secret_hash: str, old_ends_at: datetime) -> None:
        wanted = select(_keys.c.secret_hash).where(_keys.c.id == key.id).with_for_update()
        changed = {"secret_hash": secret_hash, "hint": key.hint}
        with self._database.write() as connection:
            old = connection.execute(wanted).scalar_one()
            row = {"secret_hash": old, "key_id": key.id, "ends_at": old_ends_at}
            connection.execute(insert(schema.replaced_secrets), row)
            connection.execute(update(_keys).where(_keys.c.id == key.id).values(**changed))
            _bump(connection)

    def move_key(self, key: VirtualKey) -> None:
        place = {
            "department_id": key.department.id,
            "project_id": key.project.id if key.project else None,
        }
        try:
            with self._database.write() as connection:
                connection.execute(update(_keys).where(_keys.c.id == key.id).values(**place))
                _bump(connection)
        except IntegrityError as error:
            raise NameTaken(f"there is a key {key.path} already") from error

    def revoke_key(self, key_id: str, *, at: datetime) -> VirtualKey:
        with self._database.write() as connection:
            connection.execute(
                update(_keys)
                .where(_keys.c.id == key_id, _keys.c.revoked_at.is_(None))
                .values(revoked_at=at)
            )
            _bump(connection)
        return self.find_key(key_id)

    def organisations(self) -> list[Organisation]:
        query = select(*_ORGANISATION_COLUMNS).order_by(_organisations.c.name)
        with self._database.read() as connection:
            return [_organisation(row) for row in connection.execute(query)]

    def departments(self) -> list[Department]:
        query = _below_organisations(*_DEPARTMENT_COLUMNS).order_by(
            _organisations.c.name, _departments.c.name
        )
        with self._database.read() as connection:
            return [_department(row) for row in connection.execute(query)]

    def projects(self) -> list[Project]:
        query = (
            _below_organisations(*_DEPARTMENT_COLUMNS, *_PROJECT_COLUMNS)
            .join(_projects, _projects.c.department_id == _departments.c.id)
            .order_by(_organisations.c.name, _departments.c.name, _projects.c.name)
        )
        with self._database.read() as connection:
            return [_project(row) for row in connection.execute(query)]

    def all_keys(self) -> list[tuple[VirtualKey, str]]:
        # A key that is read has its place by then; a hundred thousand keys have few places, which
        # are made once.
        with self._database.read() as connection:
            rows = connection.execute(select(_keys)).all()
        projects = {project.id: project for project in self.projects()}
        departments = {department.id: department for department in self.departments()}
        keys = [
            (_key(row, department=departments[row.department_id], projects=projects), row)
            for row in rows
        ]
        keys.sort(key=lambda found: (*found[0].department.path.split("/"), found[0].name))
        return [(key, row.secret_hash) for key, row in keys]

    def secrets(self) -> list[KeySecret]:
        replaced = schema.replaced_secrets
        keys = self.all_keys()
        by_id = {key.id: key for key, _ in keys}
        with self._database.read() as connection:
            # A key that was made since is not among those that were read.
            others = [
                KeySecret(row.secret_hash, by_id[row.key_id], row.ends_at)
                for row in connection.execute(select(replaced))
                if row.key_id in by_id
            ]
        return [*(KeySecret(secret_hash, key) for key, secret_hash in keys), *others]

    def revoked_keys(self, *, since: datetime) -> frozenset[str]:
        query = select(_keys.c.id).where(_keys.c.revoked_at >= since)
        with self._database.read() as connection:
            return frozenset(connection.execute(query).scalars())

    def set_limits(self, scope: LimitScope, scope_id: str, limits: LimitSet) -> None:
        with self._database.write() as connection:
            write_limits(connection, scope, scope_id, limits)
            _bump(connection)

    def limits(self) -> dict[tuple[LimitScope, str], LimitSet]:
        with self._database.read() as connection:
            return read_limits(connection)

    def find_organisation(self, name: str) -> Organisation:
        for organisation in self.organisations():
            if organisation.name == name:
                return organisation
        raise TenantNotFound(
            f"there is no organisation {name!r}; 'steelyard org list' shows what there is"
        )

    def find_department(self, path: str) -> Department:
        for department in self.departments():
            if department.path == path:
                return department
        raise TenantNotFound(
            f"there is no department {path!r}; 'steelyard department list' shows what there is"
        )

    def find_project(self, path: str) -> Project:
        for project in self.projects():
            if project.path == path:
                return project
        raise ProjectNotFound(
            f"there is no project {path!r}; 'steelyard project list' shows what there is"
        )

    def find_key(self, wanted: str) -> VirtualKey:
        for key, _ in self.all_keys():
            if wanted in {key.id, key.path}:
                return key
        raise KeyNotFound(f"there is no key {wanted!r}; 'steelyard key list' shows what there is")

    def revision(self) -> int:
        with self._database.read() as connection:
            return read_revision(connection, TOPIC)

    def _insert(
        self,
        table: Table,
        row: dict[str, Any],
        *,
        what: str,
        then: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        try:
            with self._database.write() as connection:
                connection.execute(insert(table), row)
                then(connection)
                _bump(connection)
        except IntegrityError as error:
            raise NameTaken(f"there is {what} already") from error


def read_revision(connection: Connection, topic: str) -> int:
    rows = _REVISION.rows(connection, {"topic": topic})
    return int(rows[0][0]) if rows else 0


def bump_revision(connection: Connection, topic: str) -> None:
    """Tell readers that something of this topic has changed."""
    revisions = schema.revisions
    bumped = connection.execute(
        update(revisions)
        .where(revisions.c.topic == topic)
        .values(revision=revisions.c.revision + 1)
    )
    if not bumped.rowcount:
        connection.execute(insert(revisions), {"topic": topic, "revision": 1})


def _bump(connection: Connection) -> None:
    bump_revision(connection, TOPIC)


def _below_organisations(*columns: Any) -> Select[*tuple[Any, ...]]:
    return (
        select(*_ORGANISATION_COLUMNS, *columns)
        .select_from(_organisations)
        .join(_departments, _departments.c.organisation_id == _organisations.c.id)
    )


def _organisation(row: Row[Any]) -> Organisation:
    return Organisation(
        id=row.o_id,
        name=row.o_name,
        currency=Currency(row.o_currency),
        created_at=row.o_created_at,
        time_zone=row.o_time_zone,
        tax_ppm=row.o_tax_ppm,
        plan=row.o_plan,
    )


def _department(row: Row[Any]) -> Department:
    return Department(
        id=row.d_id,
        organisation=_organisation(row),
        name=row.d_name,
        pays_from=row.d_pays_from,
        created_at=row.d_created_at,
    )


def _project(row: Row[Any]) -> Project:
    return Project(row.p_id, _department(row), row.p_name, row.p_created_at)


def _key(row: Row[Any], *, department: Department, projects: Mapping[str, Project]) -> VirtualKey:
    return VirtualKey(
        id=row.id,
        name=row.name,
        department=department,
        hint=row.hint,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        project=projects[row.project_id] if row.project_id is not None else None,
        disconnect_policy=row.disconnect_policy,
        cache_ttl_s=row.cache_ttl_s,
    )
