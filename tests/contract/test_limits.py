"""Limits of keys, projects, departments, organisations and models, on the way of a request."""

from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from steelyard.access.limits import CountedPlace, LimitMalformed, LimitScope, LimitSet
from steelyard.access.rate_limit import LocalCounts, RateLimited
from steelyard.access.virtual_key import (
    KeyExpired,
    KeyMissing,
    KeyRevoked,
    KeyUnknown,
    VirtualKey,
    hash_secret,
    hint_of,
)
from steelyard.entrypoints.anthropic_api.error_answer import AnthropicErrors
from steelyard.entrypoints.openai_api.error_answer import error_headers
from steelyard.gateway.key_directory import GivenBefore, KeyDirectory, SecretsByHash
from steelyard.gateway.snapshot import Snapshot
from steelyard.gateway.upstreams.scripted import Script
from steelyard.timestamp import read_timestamp
from tests.world import Answered, World

SECRET, NEW_SECRET = "sk-steelyard-" + "a" * 43, "sk-steelyard-" + "b" * 43


def limit(world: World, scope: LimitScope, **given: Any) -> None:
    key = world.keys["acme"]
    ids = {
        "organisation": key.department.organisation.id,
        "department": key.department.id,
        "key": key.id,
        "model": "scripted",
    }
    world.stores.access.set_limits(scope, ids[scope], LimitSet(**given))


def code_of(answered: Answered) -> str:
    return answered.error.code if answered.error else "served"


@pytest.mark.parametrize("scope", ["organisation", "department", "key", "model"])
def test_requests_of_a_minute_are_limited_in_every_place(
    scope: LimitScope, sqlite_world: World
) -> None:
    sqlite_world.organisation(dollars="1")
    limit(sqlite_world, scope, requests_per_minute=2)

    codes = [code_of(sqlite_world.chat()) for _ in range(3)]

    assert codes == ["served", "served", "rate_limited"]


def test_keys_of_a_department_share_its_limit_and_another_department_has_its_own(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    organisation = world.organisation(dollars="1")
    world.department(organisation, "sales", pays_from="organisation")
    limit(world, "department", requests_per_minute=1)

    codes = [code_of(world.chat(key)) for key in ("acme", "acme", "sales")]

    assert codes == ["served", "rate_limited", "served"]


def test_tokens_are_reserved_by_the_bound_and_corrected_by_what_was_used(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.upstream.script = Script(words=("one", "two"), prompt_tokens=7)
    limit(world, "organisation", tokens_per_minute=200)

    answers = [world.chat(max_tokens=20) for _ in range(3)]

    remaining = [int(a.client.headers["x-ratelimit-remaining-tokens"]) for a in answers]
    reserved = 200 - remaining[0]
    assert reserved > 20 + 7
    # Seven tokens in and two out; the third request's reservation is on top of two such.
    assert remaining == [200 - reserved, 200 - reserved - 9, 200 - reserved - 18]


def test_a_client_that_leaves_gives_back_what_it_did_not_use(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    limit(world, "key", tokens_per_minute=200, requests_at_once=1)

    codes = [code_of(world.chat(stream=True, leaves_after=1)) for _ in range(4)]

    assert codes == ["served"] * 4


def test_a_request_that_is_refused_for_money_holds_no_tokens_and_no_place(
    sqlite_world: World,
) -> None:
    sqlite_world.organisation()
    limit(sqlite_world, "key", tokens_per_minute=100, requests_at_once=1)

    codes = {code_of(sqlite_world.chat()) for _ in range(5)}

    assert codes == {"insufficient_funds"}


def test_requests_at_once_are_counted_until_they_end(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    limit(world, "department", requests_at_once=2)
    world.upstream.script = Script(hangs_after_words=1)

    async def ask_while_two_run() -> Answered:
        third: Answered | None = None
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(world.chat_async, "acme", {"stream": True})
            with anyio.fail_after(10):
                while len(world.upstream.bodies) < 2:
                    await anyio.lowlevel.checkpoint()
            third = await world.chat_async("acme", {})
            tasks.cancel_scope.cancel()
        assert third is not None
        return third

    third = anyio.run(ask_while_two_run)
    world.upstream.script = Script()

    assert code_of(third) == "too_many_at_once"
    assert code_of(world.chat()) == "served"


def test_the_lowest_input_limit_of_all_places_counts_and_goes_before_the_setting(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.upstream.script = Script(prompt_tokens=5000)
    long = [{"role": "user", "content": "x" * 6000}]

    without = world.chat(messages=long)
    limit(world, "organisation", input_tokens_max=9000)
    higher = world.chat(messages=long)
    limit(world, "model", input_tokens_max=4999)
    lower = world.chat(messages=long)

    assert [code_of(each) for each in (without, higher, lower)] == [
        "prompt_too_long",
        "served",
        "prompt_too_long",
    ]


def test_an_answer_that_was_asked_too_long_is_refused_and_one_that_was_not_is_shortened(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    limit(world, "key", output_tokens_max=30)

    asked = world.chat(max_tokens=31)
    choices = world.chat(max_tokens=16, n=2)
    not_asked = world.chat(max_tokens=None)

    assert (code_of(asked), code_of(choices)) == ("answer_too_long", "answer_too_long")
    assert code_of(not_asked) == "served"
    assert world.upstream.bodies[-1]["max_tokens"] == 30


def test_a_model_that_one_place_does_not_allow_is_refused(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    limit(world, "organisation", models=("scrip*",))
    limit(world, "key", models=("other",))

    assert code_of(world.chat()) == "model_not_allowed"
    limit(world, "key", models=("other", "scripted"))
    assert code_of(world.chat()) == "served"


def test_a_refusal_says_when_to_come_back_in_openais_words(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    limit(world, "key", requests_per_minute=1, tokens_per_minute=5000)
    served = world.chat()
    world.clock.advance(seconds=12)

    refused = world.chat()

    assert served.client.headers["x-ratelimit-limit-requests"] == "1"
    assert served.client.headers["x-ratelimit-remaining-requests"] == "0"
    assert served.client.headers["x-ratelimit-reset-requests"] == "1m0.1s"
    assert served.client.headers["x-ratelimit-limit-tokens"] == "5000"
    assert isinstance(refused.error, RateLimited)
    headers = error_headers(refused.error)
    assert headers["retry-after"] == "49"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "48.1s"
    in_anthropics_words = AnthropicErrors().headers(refused.error, at=world.clock.now())
    assert in_anthropics_words.items() >= headers.items()
    assert in_anthropics_words["anthropic-ratelimit-requests-limit"] == "1"
    assert in_anthropics_words["anthropic-ratelimit-requests-remaining"] == "0"
    reset_at = read_timestamp(in_anthropics_words["anthropic-ratelimit-requests-reset"])
    assert (reset_at - world.clock.now()).total_seconds() == pytest.approx(48.1)


def test_a_message_is_told_of_its_limits_in_anthropics_words(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    limit(sqlite_world, "key", requests_per_minute=9)

    served = sqlite_world.ask(
        "/v1/messages",
        model="scripted",
        max_tokens=5,
        messages=[{"role": "user", "content": "what do I owe?"}],
    )

    headers = served.client.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "9"
    assert headers["anthropic-ratelimit-requests-remaining"] == "8"
    reset_at = read_timestamp(headers["anthropic-ratelimit-requests-reset"])
    assert 59 < (reset_at - sqlite_world.clock.now()).total_seconds() < 62
    assert "anthropic-ratelimit-tokens-limit" not in headers
    assert "anthropic-ratelimit-requests-limit" not in sqlite_world.chat().client.headers


def a_key(world: World) -> tuple[VirtualKey, KeyDirectory]:
    world.organisation()
    key = VirtualKey(
        id="laptop",
        name="laptop",
        department=world.keys["acme"].department,
        hint=hint_of(SECRET),
        created_at=world.clock.now(),
        revoked_at=None,
        expires_at=world.clock.now() + timedelta(hours=2),
    )
    access, pepper = world.stores.access, world.stores.pepper
    access.insert_key(key, secret_hash=hash_secret(SECRET, pepper=pepper))
    snapshot = Snapshot[SecretsByHash](
        lambda: {secret.secret_hash: secret for secret in access.secrets()}, access.revision
    )
    revoked = Snapshot[frozenset[str]](
        lambda: access.revoked_keys(since=world.clock.now() - timedelta(hours=1)),
        access.revision,
    )
    return key, KeyDirectory(snapshot, revoked, pepper, world.clock)


def find(directory: KeyDirectory, secret: str) -> VirtualKey:
    async def look() -> VirtualKey:
        await directory.snapshot.refresh()
        await directory.revoked.refresh()
        return await directory.find(f"Bearer {secret}")

    return anyio.run(look)


def test_a_rotated_key_works_with_both_secrets_until_the_old_one_ends(world: World) -> None:
    key, directory = a_key(world)
    world.stores.access.rotate_key(
        key,
        secret_hash=hash_secret(NEW_SECRET, pepper=world.stores.pepper),
        old_ends_at=world.clock.now() + timedelta(hours=1),
    )

    both = {find(directory, secret).id for secret in (SECRET, NEW_SECRET)}
    world.clock.advance(seconds=3600)

    assert both == {"laptop"}
    assert find(directory, NEW_SECRET).id == "laptop"
    with pytest.raises(KeyExpired, match="new secret"):
        find(directory, SECRET)


def test_a_revoked_key_works_with_none_of_its_secrets(world: World) -> None:
    key, directory = a_key(world)
    world.stores.access.rotate_key(
        key,
        secret_hash=hash_secret(NEW_SECRET, pepper=world.stores.pepper),
        old_ends_at=world.clock.now() + timedelta(hours=1),
    )

    world.stores.access.revoke_key(key.id, at=world.clock.now())

    for secret in (SECRET, NEW_SECRET):
        with pytest.raises(KeyRevoked):
            find(directory, secret)


def test_a_revoked_key_is_dead_before_all_keys_have_been_read_again(world: World) -> None:
    key, directory = a_key(world)
    assert find(directory, SECRET) == key
    world.stores.access.revoke_key(key.id, at=world.clock.now())

    async def look() -> None:
        await directory.revoked.refresh()
        await directory.find(f"Bearer {SECRET}")

    with pytest.raises(KeyRevoked):
        anyio.run(look)


def test_a_share_is_of_the_limit_in_force() -> None:
    counts = LocalCounts(lambda: 0.0, share_of=2)

    def ask(limits: LimitSet) -> int:
        place = CountedPlace("key", "laptop", limits)
        remaining = counts.count_now([place], tokens=1).allowances.requests
        assert remaining is not None, "there is a limit"
        return remaining.remaining

    before, after = LimitSet(requests_per_minute=4), LimitSet(requests_per_minute=7)
    assert [ask(before), ask(before)] == [1, 0]
    with pytest.raises(RateLimited, match="one in 2"):
        ask(before)
    assert ask(after) == 0
    with pytest.raises(RateLimited):
        ask(after)


def test_what_a_connection_gave_before_opens_nothing_else(world: World) -> None:
    key, directory = a_key(world)
    before = GivenBefore()

    async def look(authorization: str | None) -> VirtualKey:
        await directory.snapshot.refresh()
        await directory.revoked.refresh()
        return await directory.find(authorization, before=before)

    for nothing in (None, "", SECRET):
        with pytest.raises(KeyMissing):
            anyio.run(look, nothing)
    assert anyio.run(look, f"Bearer {SECRET}") == key
    assert anyio.run(look, f"Bearer {SECRET}") == key
    for other in (f"Bearer {NEW_SECRET}", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}ä"):
        with pytest.raises(KeyUnknown):
            anyio.run(look, other)
    assert anyio.run(look, f"Bearer {SECRET}") == key
    world.stores.access.revoke_key(key.id, at=world.clock.now())
    with pytest.raises(KeyRevoked):
        anyio.run(look, f"Bearer {SECRET}")


def test_a_key_expires_at_the_moment_that_was_said(world: World) -> None:
    _, directory = a_key(world)

    world.clock.advance(seconds=2 * 3600 - 0.001)
    assert find(directory, SECRET).id == "laptop"
    world.clock.advance(seconds=0.001)

    with pytest.raises(KeyExpired):
        find(directory, SECRET)


def test_limits_are_kept_as_they_were_set(world: World) -> None:
    world.organisation()
    given = LimitSet(1, 2, 3, 4, 5, models=("a*", "b"), ip_ranges=("10.0.0.0/8", "::1/128"))

    world.stores.access.set_limits("model", "some/model", LimitSet(requests_per_minute=9))
    world.stores.access.set_limits("model", "some/model", given)

    assert world.stores.access.limits() == {("model", "some/model"): given}
    world.stores.access.set_limits("model", "some/model", LimitSet())
    assert world.stores.access.limits() == {}


@pytest.mark.parametrize(
    "given",
    [{"requests_per_minute": -1}, {"input_tokens_max": 2**31}, {"ip_ranges": ("10.0.0.1/8",)}],
)
def test_a_limit_that_means_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(LimitMalformed):
        LimitSet(**given)
