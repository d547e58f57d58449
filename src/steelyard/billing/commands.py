"""Commands: money that people move by hand, with their name and reason, and never twice."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from steelyard.billing.fund_books import FundUnit
from steelyard.clock import Clock
from steelyard.errors import Refusal
from steelyard.ids import new_id
from steelyard.ledger.transaction import Command, Transaction

# Ids of grants and transactions are made from it, with a word and a sign that it cannot have.
_COMMAND_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}")


Unit = TypeVar("Unit", bound=FundUnit)
Unit_co = TypeVar("Unit_co", bound=FundUnit, covariant=True)


class UnitBooks(Protocol[Unit_co]):
    """The books, in units of work that a command needs."""

    def write(self) -> AbstractContextManager[Unit_co]: ...


class CommandIdMalformed(Refusal):
    """A command's id is 1 to 56 letters, digits, dots, dashes and underscores."""

    code = "command_id_malformed"


class CommandIdTaken(Refusal):
    """Another command has this id already. Choose another id."""

    code = "command_id_taken"


class AmountNotPositive(Refusal):
    """An amount of money that moves is more than zero."""

    code = "amount_not_positive"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command is to do, so that a repetition of it can be told from another command."""

    template: str
    reference: str | None = None
    picos: int | None = None

    def is_done_by(self, transaction: Transaction) -> bool:
        moved = sum(posting.picos for posting in transaction.postings if posting.picos > 0)
        return (
            transaction.template == self.template
            and self.reference in {None, transaction.reference}
            and self.picos in {None, moved}
        )


@dataclass(frozen=True, slots=True)
class Booked:
    """What a command did; `is_repeat` where it was done before, and nothing more happened."""

    transaction: Transaction
    is_repeat: bool


def new_command(*, clock: Clock, actor: str, reason: str, command_id: str | None = None) -> Command:
    """A command of somebody; raises CommandIdMalformed."""
    if command_id is not None and not _COMMAND_ID.fullmatch(command_id):
        raise CommandIdMalformed(f"{command_id!r} is no id: {CommandIdMalformed.__doc__}")
    return Command(command_id or new_id(), clock.now(), actor, reason)


def carry_out(
    books: UnitBooks[Unit], command: Command, wanted: Wanted, write: Callable[[Unit], Transaction]
) -> Booked:
    """Do what `write` does, once for each id; raises CommandIdTaken."""
    with books.write() as unit:
        unit.wait_turn(command.id)
        earlier = unit.find_transaction(command.id)
        if earlier is None:
            return Booked(write(unit), is_repeat=False)
        if not wanted.is_done_by(earlier):
            raise CommandIdTaken(
                f"the id {command.id!r} is that of another command ({earlier.template}, "
                f"{earlier.reference}); choose another"
            )
        return Booked(earlier, is_repeat=True)


def check_positive(picos: int) -> None:
    """Raises AmountNotPositive."""
    if picos <= 0:
        raise AmountNotPositive
