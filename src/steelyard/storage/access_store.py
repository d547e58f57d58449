"""The store of tenants and virtual keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from steelyard.access.store import KeyNotFound, NameTaken, TenantNotFound
from steelyard.access.tenant import Department, Organisation
from steelyard.access.virtual_key import VirtualKey
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.database import Database

TOPIC = "access"


class SqlAccessStore:
    """Implements AccessStore; each call is a unit of work of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert_organisation(self, organisation: Organisation) -> None:
        row = {
            "id": organisation.id,
            "name": organisation.name,
            "currency": organisation.currency,
            "created_at": organisation.created_at,
        }
        self._insert(schema.organisations, row, what=f"an organisation named {organisation.name!r}")

    def insert_department(self, department: Department) -> None:
        row = {
            "id": department.id,
            "organisation_id": department.organisation.id,
            "name": department.name,
            "pays_from": department.pays_from,
            "created_at": department.created_at,
        }
        self._insert(schema.departments, row, what=f"a department {department.path!r}")

    def insert_key(self, key: VirtualKey, *, secret_hash: str) -> None:
        row = {
            "id": key.id,
            "department_id": key.department.id,
            "name": key.name,
            "secret_hash": secret_hash,
            "hint": key.hint,
            "requests_per_minute": key.requests_per_minute,
            "input_tokens_max": key.input_tokens_max,
            "created_at": key.created_at,
            "revoked_at": None,
        }
        self._insert(schema.virtual_keys, row, what=f"a key {key.department.path}/{key.name}")

    def revoke_key(self, key_id: str, *, at: datetime) -> VirtualKey:
        keys = schema.virtual_keys
        with self._database.write() as connection:
            connection.execute(
                update(keys)
                .where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
                .values(revoked_at=at)
            )
            _bump(connection)
        for key, _ in self.all_keys():
            if key.id == key_id:
                return key
        raise KeyNotFound(f"there is no key {key_id!r}; 'steelyard key list' shows what there is")

    def organisations(self) -> list[Organisation]:
        with self._database.read() as connection:
            rows = connection.execute(
                select(schema.organisations).order_by(schema.organisations.c.name)
            )
            return [
                Organisation(row.id, row.name, Currency(row.currency), row.created_at)
                for row in rows
            ]

    def departments(self) -> list[Department]:
        with self._database.read() as connection:
            return [_department(row) for row in connection.execute(_departments())]

    def all_keys(self) -> list[tuple[VirtualKey, str]]:
        with self._database.read() as connection:
            return [(_key(row), row.secret_hash) for row in connection.execute(_keys())]

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

    def revision(self) -> int:
        with self._database.read() as connection:
            return read_revision(connection, TOPIC)

    def _insert(self, table: Any, row: dict[str, Any], *, what: str) -> None:
        try:
            with self._database.write() as connection:
                connection.execute(insert(table), row)
                _bump(connection)
        except IntegrityError as error:
            raise NameTaken(f"there is {what} already") from error


def read_revision(connection: Connection, topic: str) -> int:
    revisions = schema.revisions
    query = select(revisions.c.revision).where(revisions.c.topic == topic)
    return connection.execute(query).scalar_one_or_none() or 0


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


def _departments() -> Select[Any]:
    departments, organisations = schema.departments, schema.organisations
    return (
        select(
            departments,
            organisations.c.name.label("organisation_name"),
            organisations.c.currency,
            organisations.c.created_at.label("organisation_created_at"),
        )
        .join(organisations, departments.c.organisation_id == organisations.c.id)
        .order_by(organisations.c.name, departments.c.name)
    )


def _keys() -> Select[Any]:
    departments, organisations, keys = (
        schema.departments,
        schema.organisations,
        schema.virtual_keys,
    )
    return (
        select(
            departments,
            organisations.c.name.label("organisation_name"),
            organisations.c.currency,
            organisations.c.created_at.label("organisation_created_at"),
            keys.c.id.label("key_id"),
            keys.c.name.label("key_name"),
            keys.c.secret_hash,
            keys.c.hint,
            keys.c.requests_per_minute,
            keys.c.input_tokens_max,
            keys.c.created_at.label("key_created_at"),
            keys.c.revoked_at,
        )
        .join(organisations, departments.c.organisation_id == organisations.c.id)
        .join(keys, keys.c.department_id == departments.c.id)
        .order_by(organisations.c.name, departments.c.name, keys.c.name)
    )


def _department(row: Row[Any]) -> Department:
    organisation = Organisation(
        row.organisation_id,
        row.organisation_name,
        Currency(row.currency),
        row.organisation_created_at,
    )
    return Department(row.id, organisation, row.name, row.pays_from, row.created_at)


def _key(row: Row[Any]) -> VirtualKey:
    return VirtualKey(
        id=row.key_id,
        name=row.key_name,
        department=_department(row),
        hint=row.hint,
        requests_per_minute=row.requests_per_minute,
        input_tokens_max=row.input_tokens_max,
        created_at=row.key_created_at,
        revoked_at=row.revoked_at,
    )
