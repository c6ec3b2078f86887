"""The rule of a decision, without a file; ``test_validator`` has it with one."""

from ipaddress import ip_network

import pytest

from keystore import Reason
from keystore.edge.decision import (
    ClientCredentials,
    Decision,
    Entry,
    Freshness,
    Limit,
    QuotaLeft,
    Rate,
    RateLimit,
    decide,
)
from tests.test_validator import ENTRY, FRESH, changed

NOW = 100.0
OVER = Limit("", "", is_in_grace=False, is_over=True)
GRACE = Limit("", "", is_in_grace=True, is_over=False)
RATE = Rate(1, 60, 5)

REFUSED: list[tuple[Reason, dict[str, object]]] = [
    (Reason.SUSPENDED, {"is_active": False, "status": "unassigned"}),
    (Reason.EXPIRED, {"expires_at": NOW}),
    (Reason.ACCOUNT_INACTIVE, {"account_is_active": False}),
    (Reason.NETWORK, {"networks": (ip_network("192.0.2.0/24"),)}),
    (Reason.SERVICE, {}),
    (Reason.OFFLINE, {}),
    (Reason.STALE, {"max_staleness_seconds": 60}),
]


@pytest.mark.parametrize("first", range(len(REFUSED)))
def test_of_several_reasons_the_most_certain_is_given(first: int) -> None:
    given = REFUSED[first:]
    reasons = [reason for reason, _ in given]
    values = {name: value for _, part in reversed(given) for name, value in part.items()}
    decision = decide(
        changed(**values),
        NOW,
        Freshness(1, None, 61.0, OVER if Reason.OFFLINE in reasons else GRACE),
        "198.51.100.1",
        has_service=Reason.SERVICE not in reasons,
    )
    assert (decision.reason, decision.allowed) == (given[0][0], False)


def test_what_may_pass_late_or_in_the_grace_or_for_a_service_passes() -> None:
    assert decide(ENTRY, NOW, Freshness(1, None, 1e9, GRACE), None, has_service=True).allowed
    assert decide(changed(status="exhausted", is_active=False), NOW, FRESH).reason is (
        Reason.QUOTA_EXCEEDED
    )


@pytest.mark.parametrize(
    ("ip", "allowed"),
    [
        ("192.0.2.1", True),
        ("203.0.113.9", True),
        ("198.51.100.1", False),
        ("::ffff:203.0.113.9", True),
        ("2001:db8::1", False),
        ("192.0.2.1.", False),
        (None, False),
    ],
)
def test_one_of_the_networks_is_enough(ip: str | None, allowed: bool) -> None:
    entry = changed(networks=(ip_network("192.0.2.0/24"), ip_network("203.0.113.0/24")))
    decision = decide(entry, NOW, FRESH, ip)
    assert decision.allowed is allowed
    assert decision.reason is (Reason.OK if allowed else Reason.NETWORK)


def test_not_now_is_said_where_nothing_is_known_and_nowhere_else() -> None:
    assert {reason for reason in Reason if reason.is_not_now} == {
        Reason.STALE,
        Reason.OFFLINE,
        Reason.NOT_SYNCED,
        Reason.UNAVAILABLE,
    }
    assert all(type(reason.is_not_now) is bool for reason in Reason)


def test_who_asked_is_named_field_by_field() -> None:
    entry: Entry = changed(label="l", metadata="{}", expires_at=NOW + 1, account_id=7, principal=9)
    decision = decide(entry, NOW, FRESH)
    assert decision == Decision(
        allowed=True,
        reason=Reason.OK,
        api_key=entry.api_key,
        api_key_id=9,
        account="ada@example.org",
        account_id=7,
        plan="free",
        label="l",
        metadata="{}",
        expires_at=NOW + 1,
        freshness=FRESH,
        principal_type="api_key",
    )
    client = decide(changed(client_id="app", principal=-9, api_key=None), NOW, FRESH)
    assert (client.principal_type, client.client_id) == ("oauth_client", "app")
    assert (client.api_key, client.api_key_id) == (None, None)


def test_a_rate_is_added_and_refuses_only_with_a_wait() -> None:
    decision = decide(ENTRY, NOW, FRESH)
    passing, waiting = RateLimit(RATE, 4, 60.0, 0.0), RateLimit(RATE, 0, 300.0, 0.5)
    assert decision.with_rate(passing) == decision._replace(rate=passing)
    assert decision.with_rate(waiting) == decision._replace(
        allowed=False, reason=Reason.RATE_LIMITED, rate=waiting
    )


def test_a_decision_is_plain_fields_for_json() -> None:
    class Held:
        remaining = 3

    bare = Decision(allowed=False, reason=Reason.UNKNOWN).as_dict()
    assert (bare["freshness"], bare["quota"], bare["rate"]) == (None, None, None)
    full = decide(ENTRY, NOW, FRESH)._replace(
        rate=RateLimit(RATE, 4, 60.0, 0.0), quota=QuotaLeft(Held(), "tts", 5, None)
    )
    fields = full.as_dict()
    assert fields["freshness"] == FRESH._asdict()
    assert fields["quota"] == {"service": "tts", "initial": 5, "remaining": 3, "renews_at": None}
    assert fields["rate"] == {
        "rate": {"limit": 1, "window_seconds": 60, "burst": 5},
        "remaining": 4,
        "reset_seconds": 60.0,
        "retry_after": 0.0,
    }
    assert set(fields) == set(Decision._fields)


def test_a_clients_secret_is_in_no_repr_and_a_limit_cannot_be_changed() -> None:
    assert repr(ClientCredentials("app", "s3cret")) == "ClientCredentials(client_id='app')"
    with pytest.raises(AttributeError):
        OVER.is_over = False  # type: ignore[misc]
