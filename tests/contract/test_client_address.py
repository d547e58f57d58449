"""Where a request comes from, and which keys work from there."""

from ipaddress import ip_address

import pytest

from steelyard.access.limits import AddressNotAllowed, LimitMalformed, LimitSet
from steelyard.entrypoints.openai_api.client_address import client_address, read_trusted_proxies
from tests.world import World

TRUSTED = read_trusted_proxies("10.0.0.0/8, ::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.2.2.2"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.1", "198.51.100.1, 10.2.2.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], None),
        ("10.0.0.1", [""], None),
    ],
)
def test_only_what_trusted_proxies_have_added_is_believed(
    peer: str, forwarded: list[str], address: str | None
) -> None:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]

    found = client_address({"client": (peer, 1), "headers": headers}, trusted=TRUSTED)

    assert found == (ip_address(address) if address else None)


def test_a_socket_without_an_address_has_none() -> None:
    assert client_address({"client": None, "headers": []}, trusted=TRUSTED) is None


def test_ranges_that_are_none_are_refused() -> None:
    with pytest.raises(LimitMalformed):
        read_trusted_proxies("10.0.0.0/8,proxy.example")


def test_a_key_works_from_the_ranges_of_every_place_above_it(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    key, access = world.keys["acme"], world.stores.access
    wide = LimitSet(ip_ranges=("10.0.0.0/8", "2001:db8::/32"))
    access.set_limits("organisation", key.department.organisation.id, wide)
    access.set_limits("key", key.id, LimitSet(ip_ranges=("10.1.0.0/16",)))
    world.chat()

    world.limits.check_address(key, lambda: ip_address("10.1.2.3"))

    for other in ("10.2.0.1", "2001:db8::1", "203.0.113.9"):
        with pytest.raises(AddressNotAllowed, match=other):
            world.limits.check_address(key, lambda other=other: ip_address(other))
    with pytest.raises(AddressNotAllowed):
        world.limits.check_address(key, lambda: None)
