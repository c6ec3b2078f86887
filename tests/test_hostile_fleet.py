"""What one role says of itself never keeps the hub's owner from seeing the others."""

import json
from collections.abc import Callable
from math import isfinite

import pytest

from keystore import Store
from keystore.sync import hub_fleet, targets
from tests.conftest import NewStore
from tests.test_grants import World, query, role_name, run, world

__all__ = ["NewStore", "Store", "role_name", "world"]

LEAST, MOST = -(2**63), 2**63 - 1
NAME = "00000000-0000-7000-8000-000000000001"


def as_replica(url: str, origin_id: str, as_of_change: int, time: str, version: str) -> None:
    """Check in with a statement of one's own, as whoever holds the role's password can."""
    query(
        url,
        "INSERT INTO keystore.grants (store_id, role_name, access)"
        " VALUES (%s, current_user, 'own') ON CONFLICT DO NOTHING",
        NAME,
    )
    query(
        url,
        "INSERT INTO keystore.replicas (store_id, incarnation, origin_id, token, schema_version,"
        " program_version, as_of_change, as_of_at, seen_revocation)"
        " VALUES (%s, %s, %s, %s, 3, %s, %s, %s, %s)",
        NAME,
        NAME,
        origin_id,
        NAME,
        version,
        as_of_change,
        time,
        LEAST,
    )
    query(url, "UPDATE keystore.replicas SET last_seen_at = %s", time)


@pytest.mark.parametrize(
    ("change", "time"),
    [
        (LEAST, "2026-11-20 12:00:00+00"),
        (MOST, "2026-11-20 12:00:00+00"),
        (3, "infinity"),
        (3, "-infinity"),
        (3, "4713-01-01 BC"),
        (3, "294276-12-31 23:59:59+00"),
    ],
)
def test_no_number_or_time_of_a_replica_hides_the_fleet_or_the_receipts(
    world: World, change: int, time: str
) -> None:
    as_replica(world.edges[0], world.ids[0], change, time, "\x1b[2J")
    with targets.hub_admin(world.url) as admin:
        admin.revoke(world.stores[1].keys()[0].api_key)
        members = hub_fleet.fleet(admin)
        (receipt,) = hub_fleet.receipts(admin)
    assert len(members) == 3
    assert all(isfinite(member.silent_seconds) for member in members)
    assert all(isfinite(member.age_seconds or 0) for member in members)
    assert [holder.store_id for holder in receipt.lack] == [world.ids[1]]
    assert run("fleet", world.url).exit_code == 0
    shown = run("fleet", world.url, "--json")
    assert len(json.loads(shown.stdout, parse_constant=_refuse)) == 3


@pytest.mark.parametrize("time", ["infinity", "-infinity"])
def test_no_number_or_time_of_an_origin_hides_the_fleet(world: World, time: str) -> None:
    query(
        world.origins[0],
        "UPDATE keystore.stores SET acknowledged_change = %s, as_of_at = %s, last_seen_at = %s",
        MOST,
        time,
        time,
    )
    as_replica(world.edges[0], world.ids[0], LEAST, time, "")
    with targets.hub_admin(world.url) as admin:
        members = hub_fleet.fleet(admin)
    assert len(members) == 3
    assert run("fleet", world.url).exit_code == 0


def _refuse(constant: str) -> Callable[[str], object]:
    raise AssertionError(f"{constant} is not JSON")
