"""The books behind a network that loses questions, and answers after they were acted on."""

from collections.abc import Generator
from contextlib import contextmanager

from steelyard.storage.books import SqlBooks, SqlBooksUnit
from steelyard.storage.database import BooksUnavailable
from tests.sim.life import LIFE, Crashed
from tests.sim.plan import Faults
from tests.sim.universe import Universe
from tests.sim.virtual_threads import sleep_here

QUERY_S = 0.002
SLEEP_S_MAX = 40.0


class FaultyBooks(SqlBooks):
    """Implements Books for one process. A unit of work happens at one moment of virtual time; a
    process may sleep, die or lose its connection before it and after it."""

    unit_class: type[SqlBooksUnit] = SqlBooksUnit

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.stores.database)
        self._universe = universe

    @contextmanager
    def write(self) -> Generator[SqlBooksUnit]:
        self._travel()
        if self._universe.are_books_away or self._universe.strikes(self._faults.books_refuse):
            self._universe.note("books.refused")
            raise BooksUnavailable("the simulated database is away")
        with self._database.write() as connection:
            unit = self.unit_class(connection, path_ids=self._path_ids)
            yield unit
            if self._universe.strikes(self._faults.books_refuse):
                self._universe.note("books.commit_failed")
                raise BooksUnavailable("the simulated database does not commit")
        self._path_ids |= unit.new_path_ids
        self._universe.check_books()
        self._travel()
        if self._universe.strikes(self._faults.books_forget_to_answer):
            self._universe.note("books.answer_lost")
            raise BooksUnavailable("the simulated connection was lost after the commit")

    @contextmanager
    def read_leases(self) -> Generator[SqlBooksUnit]:
        with self.write() as unit:
            yield unit

    def _travel(self) -> None:
        sleep_here(self._universe.chance.uniform(0, QUERY_S))
        if self._universe.strikes(self._faults.sleeps):
            seconds = self._universe.chance.uniform(0, SLEEP_S_MAX)
            self._universe.note("process.sleeps", seconds=f"{seconds:.1f}")
            sleep_here(seconds)
        if LIFE.get().is_dead:
            raise Crashed

    @property
    def _faults(self) -> Faults:
        return self._universe.plan.faults
