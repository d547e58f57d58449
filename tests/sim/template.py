"""Books with tenants, keys and prices, made once; each history begins with a copy."""

import atexit
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from steelyard import ids
from steelyard.access.budget import Budget
from steelyard.access.tenant import Department, Organisation
from steelyard.access.virtual_key import VirtualKey
from steelyard.app.stores import Stores, open_stores
from steelyard.billing.commands import new_command
from steelyard.billing.top_up import add_credit
from steelyard.clock import FakeClock
from steelyard.ids import new_id
from steelyard.money import Money, read_decimal
from steelyard.pricing.price_book import publishable_version
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.settings import read_settings
from tests.sim.plan import POLICIES, Plan
from tests.sim.universe import BEGINNING
from tests.world import PRICE_BOOK, USD

MEMORY = Path("/dev/shm")


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: no history waits for a real disk."""
    return tempfile.TemporaryDirectory(
        prefix="steelyard-sim-", dir=MEMORY if MEMORY.is_dir() else None
    )


@cache
def _template() -> Path:
    scratch = scratch_folder()
    atexit.register(scratch.cleanup)
    folder = Path(scratch.name)
    numbers = count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "uuid7", lambda: f"00000000-0000-7000-8000-{next(numbers):012x}")
        stores = open_stores(read_settings(data_dir=folder), should_migrate=True)
        version = publishable_version(read_price_book(PRICE_BOOK, published=[]))
        stores.prices.publish(version, at=BEGINNING)
        _add_tenants(stores)
        stores.database.close()
    return folder


def _add_tenants(stores: Stores) -> None:
    """Two payers: an organisation, and a department that has a balance of its own."""
    organisation = Organisation(new_id(), "acme", USD, BEGINNING)
    stores.access.insert_organisation(organisation)
    for number, policy in enumerate(POLICIES):
        pays_from = "department" if number == 1 else "organisation"
        department = Department(new_id(), organisation, f"team-{number}", pays_from, BEGINNING)
        stores.access.insert_department(department)
        key = VirtualKey(
            id=new_id(),
            name=policy.replace("_", "-"),
            department=department,
            hint="",
            created_at=BEGINNING,
            revoked_at=None,
            disconnect_policy=policy,
        )
        stores.access.insert_key(key, secret_hash=new_id())


@contextmanager
def fresh_stores(folder: Path) -> Generator[Stores]:
    """A copy of the template, open."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True)
    stores = open_stores(read_settings(data_dir=folder))
    try:
        yield stores
    finally:
        stores.database.close()


def keys_of(stores: Stores) -> list[VirtualKey]:
    return sorted((key for key, _ in stores.access.all_keys()), key=lambda key: key.id)


def pay_in(stores: Stores, plan: Plan) -> int:
    """Give every payer its money, and perhaps a budget of tokens; how much came in, in picos."""
    clock, picos = FakeClock(BEGINNING), read_decimal(plan.funds)
    departments = {key.department.id: key.department for key in keys_of(stores)}.values()
    organisation = next(iter(departments)).organisation
    owners = [organisation, *(one for one in departments if one.pays_from == "department")]
    for owner in owners:
        command = new_command(clock=clock, actor="simulator", reason="simulation")
        add_credit(stores.books, owner, amount=Money(picos, USD), command=command)
    if plan.token_budget is not None:
        stores.budgets.insert_budget(_budget(organisation, plan.token_budget))
    return picos * len(owners)


def _budget(organisation: Organisation, tokens: int) -> Budget:
    return Budget(
        id=new_id(),
        organisation_id=organisation.id,
        scope="organisation",
        scope_id=organisation.id,
        unit="tokens",
        period="day",
        amount=tokens,
        is_hard=True,
        currency=USD,
        time_zone=organisation.time_zone,
        created_at=BEGINNING,
    )
