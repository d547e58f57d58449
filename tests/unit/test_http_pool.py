"""The pool: connections are kept, limited, opened anew, and always given back."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.gateway.upstreams.connecting import connect_first, in_turns, origin_of
from steelyard.gateway.upstreams.http_connection import ConnectionBroken, HttpConnection
from steelyard.gateway.upstreams.http_pool import HttpPool, PoolClosed, PoolRules
from steelyard.gathered_writes import GatheredWrites
from tests.raw_http import GOOD, Behaviour, Peer, RawServer, answers_well, raw_server, until

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
BODY = b"{}"
LATER_S = 60.0
RULES = PoolRules(connections_max=2, connect_s=LATER_S, stale_within_s=LATER_S)
PARTS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def pool_to(
    behaviour: Behaviour, *, rules: PoolRules = RULES
) -> AsyncGenerator[tuple[HttpPool, RawServer]]:
    async with raw_server(behaviour) as server:
        pool = HttpPool(origin_of(server.url), rules)
        await pool.open()
        try:
            yield pool, server
        finally:
            await pool.close()


async def ask(pool: HttpPool, *, within_s: float = LATER_S) -> bytes:
    by_s = asyncio.get_running_loop().time() + within_s
    connection = await pool.ask(HEAD, BODY, by_s=by_s)
    try:
        return await connection.whole(silence_s=LATER_S, ends_s=by_s, bytes_max=1000)
    finally:
        pool.give_back(connection)


def requests_to(
    behaviour: Behaviour,
    act: Callable[[HttpPool, RawServer], Awaitable[None]],
    *,
    rules: PoolRules = RULES,
) -> list[int]:
    """How many requests came over each connection; afterwards every place is free again."""

    async def talk() -> list[int]:
        async with pool_to(behaviour, rules=rules) as (pool, server):
            await act(pool, server)
            await until(lambda: pool.free_places + pool.idle_count == rules.connections_max)
            return [len(peer.requests) for peer in server.peers]

    return asyncio.run(talk())


async def ask_twice(pool: HttpPool, _server: RawServer) -> None:
    assert [await ask(pool), await ask(pool)] == [b"{}", b"{}"]


async def is_refused(pool: HttpPool, _server: RawServer) -> None:
    with pytest.raises(ConnectionBroken):
        await ask(pool)


async def ask_and_be_refused(pool: HttpPool, server: RawServer) -> None:
    await ask(pool)
    await is_refused(pool, server)


def closes_on(number: int, *, after: bytes = b"") -> Behaviour:
    """Answers so many requests of its first connection, and closes it on the next one."""

    async def behave(peer: Peer) -> None:
        while await peer.request() is not None:
            if peer.number == 0 and len(peer.requests) > number:
                await peer.send(after)
                return
            await peer.send(GOOD)

    return behave


def test_a_connection_is_kept_for_the_next_request() -> None:
    assert requests_to(answers_well, ask_twice) == [2]


def test_a_kept_connection_that_was_closed_before_any_byte_is_replaced_once() -> None:
    assert requests_to(closes_on(1), ask_twice) == [2, 1]


def test_a_request_is_not_sent_again_from_a_new_connection() -> None:
    assert requests_to(closes_on(0), is_refused) == [1]


def test_a_request_is_not_sent_again_once_a_byte_of_its_answer_has_come() -> None:
    assert requests_to(closes_on(1, after=b"H"), ask_and_be_refused) == [2]


def test_a_request_is_not_sent_again_when_its_server_had_time_to_work_on_it() -> None:
    rules = PoolRules(connections_max=2, connect_s=LATER_S, stale_within_s=0)

    assert requests_to(closes_on(1), ask_and_be_refused, rules=rules) == [2]


def test_a_request_is_sent_again_only_once() -> None:
    async def behave(peer: Peer) -> None:
        while await peer.request() is not None:
            if peer.number or len(peer.requests) > 1:
                return
            await peer.send(GOOD)

    assert requests_to(behave, ask_and_be_refused) == [2, 1]


def test_a_connection_that_its_server_has_closed_meanwhile_is_not_used() -> None:
    async def act(pool: HttpPool, server: RawServer) -> None:
        await ask(pool)
        server.peers[0].close()
        await until(lambda: pool.idle_count == 0)
        await ask(pool)

    assert requests_to(answers_well, act) == [1, 1]


def test_a_connection_is_closed_when_nobody_has_needed_it_for_long() -> None:
    rules = PoolRules(connections_max=2, connect_s=LATER_S, keep_s=0.02)

    async def act(pool: HttpPool, server: RawServer) -> None:
        await ask(pool)
        await until(lambda: pool.open_count == 0)
        await until(lambda: server.peers[0].is_over)

    assert requests_to(answers_well, act, rules=rules) == [1]


def test_no_more_connections_are_opened_than_there_may_be_and_nobody_is_forgotten() -> None:
    async def act(pool: HttpPool, _server: RawServer) -> None:
        answers = await asyncio.gather(*[ask(pool) for _ in range(20)])
        assert answers == [b"{}"] * 20

    assert sum(counts := requests_to(answers_well, act)) == 20
    assert len(counts) == 2


def test_who_waits_for_a_connection_waits_no_longer_than_it_may() -> None:
    rules = PoolRules(connections_max=1, connect_s=LATER_S)

    async def act(pool: HttpPool, _server: RawServer) -> None:
        connection = await pool.ask(HEAD, BODY, by_s=asyncio.get_running_loop().time() + LATER_S)
        with pytest.raises(TimeoutError):
            await ask(pool, within_s=0.02)
        pool.give_back(connection)

    assert requests_to(answers_well, act, rules=rules) == [1]


def test_what_cannot_be_reached_is_no_connection() -> None:
    async def talk() -> int:
        async with raw_server(answers_well) as server:
            port = server.port
        pool = HttpPool(origin_of(f"http://127.0.0.1:{port}"), RULES)
        with pytest.raises(ConnectionBroken):
            await ask(pool)
        return pool.free_places

    assert asyncio.run(talk()) == 2


def test_an_answer_that_is_not_read_to_its_end_closes_its_connection() -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(PARTS, b"1\r\na\r\n")
        await peer.closed()

    async def act(pool: HttpPool, _server: RawServer) -> None:
        connection = await pool.ask(HEAD, BODY, by_s=float("inf"))
        assert await connection.receive(by_s=float("inf")) == b"a"
        pool.give_back(connection)

    assert requests_to(behave, act) == [1]


@pytest.mark.parametrize(
    ("rest", "connections"),
    [
        pytest.param([b"0\r\n\r\n"], 1, id="its end comes"),
        pytest.param([], 2, id="the server closes"),
        pytest.param([b"4000\r\n" + b"a" * 0x4000 + b"\r\n"] * 2, 2, id="more comes"),
        pytest.param([b"nonsense"], 2, id="nonsense comes"),
    ],
)
def test_the_frame_of_an_answer_that_is_over_may_come_later(
    rest: list[bytes], connections: int
) -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(PARTS, b"1\r\na\r\n")
        await go_on.wait()
        await peer.send(*rest)
        if rest:
            await answers_well(peer)

    async def act(pool: HttpPool, _server: RawServer) -> None:
        connection = await pool.ask(HEAD, BODY, by_s=float("inf"))
        assert await connection.receive(by_s=float("inf")) == b"a"
        pool.give_back(connection, is_over=True)
        go_on.set()
        await until(lambda: pool.free_places + pool.idle_count == 2)
        if connections == 1:
            await ask(pool)

    go_on = asyncio.Event()
    assert sum(requests_to(behave, act)) == (2 if connections == 1 else 1)


def test_a_pool_that_is_closed_ends_what_is_open_and_takes_nothing_more() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async def talk() -> None:
        async with pool_to(silent) as (pool, server):
            asking = [asyncio.ensure_future(ask(pool)) for _ in range(3)]
            await until(lambda: len(server.requests) == 2)
            await pool.close()
            await asyncio.wait(asking)
            errors = [each.exception() for each in asking]
            assert [type(error) for error in errors] == [
                ConnectionBroken,
                ConnectionBroken,
                PoolClosed,
            ]
            assert pool.open_count == 0
            with pytest.raises(PoolClosed):
                await ask(pool)

    asyncio.run(talk())


# What a server may do with a request, and after how many turns of the loop its asker may leave.
FATES = ("answers", "closes", "breaks off", "talks on", "is slow")
asked = st.tuples(st.sampled_from(FATES), st.none() | st.integers(0, 12))


async def _meet(peer: Peer, fates: list[str]) -> None:
    while await peer.request() is not None:
        match fates.pop(0) if fates else "answers":
            case "closes":
                return
            case "breaks off":
                await peer.send(GOOD[:-1])
                return
            case "talks on":
                await peer.send(GOOD + GOOD)
            case "is slow":
                for at in range(0, len(GOOD), 16):
                    await peer.send(GOOD[at : at + 16])
                    await asyncio.sleep(0)
            case _:
                await peer.send(GOOD)


async def _leave_after(asking: "asyncio.Task[bytes]", turns: int | None) -> None:
    if turns is not None:
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
    with suppress(ConnectionBroken, asyncio.CancelledError):
        assert await asking == b"{}"


@settings(max_examples=60, deadline=None)
@given(st.lists(asked, min_size=1, max_size=12))
def test_whatever_becomes_of_requests_every_place_is_free_afterwards(
    requests: list[tuple[str, int | None]],
) -> None:
    fates = [fate for fate, _ in requests]

    async def behave(peer: Peer) -> None:
        await _meet(peer, fates)

    async def act(pool: HttpPool, _server: RawServer) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _, turns in requests:
                tasks.create_task(_leave_after(asyncio.ensure_future(ask(pool)), turns))
        fates.clear()
        assert await ask(pool) == b"{}"

    counts = requests_to(behave, act)

    # A request that was sent a second time went out on a kept connection before.
    assert sum(counts) <= 2 * len(requests) + 2


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a", ("a", 80, "a")),
        ("https://a:8443/v1", ("a", 8443, "a:8443")),
        ("https://[::1]", ("::1", 443, "[::1]")),
        ("http://bücher.example:80", ("xn--bcher-kva.example", 80, "xn--bcher-kva.example")),
    ],
)
def test_a_url_names_a_server(url: str, origin: tuple[str, int, str]) -> None:
    named = origin_of(url)

    assert (named.host, named.port, named.authority) == origin


def test_addresses_of_both_families_are_tried_in_turns() -> None:
    found = [(10, "::1"), (10, "::2"), (10, "::3"), (2, "1.1.1.1"), (10, "::1")]

    assert in_turns(found) == ["::1", "1.1.1.1", "::2", "::3"]


def _connection(lost: list[HttpConnection]) -> HttpConnection:
    loop = asyncio.get_running_loop()
    return HttpConnection(loop, GatheredWrites(loop), on_lost=lost.append)


def test_the_next_address_is_tried_when_one_fails_and_when_one_says_nothing() -> None:
    tried: list[str] = []

    async def to(address: str) -> HttpConnection:
        tried.append(address)
        if address == "fails":
            raise ConnectionRefusedError
        if address == "is silent":
            await asyncio.sleep(LATER_S)
        return _connection([])

    async def talk(*addresses: str) -> HttpConnection:
        return await connect_first(addresses, to)

    asyncio.run(talk("fails", "is silent", "answers", "comes too late"))
    assert tried == ["fails", "is silent", "answers"]
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(talk("fails", "fails"))
