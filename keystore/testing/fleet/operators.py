"""What operators do in a simulated fleet, one function for each kind of step; see ``steps``."""

from datetime import timedelta

from keystore.clock import utc_text
from keystore.testing.fleet.model import BrokenError
from keystore.testing.fleet.nodes import Issued, Origin
from keystore.testing.fleet.setup import Fleet

_DAY = 86_400.0


def any_origin(fleet: Fleet) -> Origin:
    """Draw an origin."""
    return fleet.world.rng.choice(fleet.origins)


def any_key(fleet: Fleet, origin: Origin) -> Issued:
    """Draw a key of an origin."""
    return fleet.world.rng.choice(origin.issued)


def issue(fleet: Fleet) -> None:
    """Issue a key."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        soon = origin.world.time() + rng.uniform(600, 3 * _DAY)
        fleet.issue(
            origin,
            expires_at=utc_text(soon) if rng.random() < 0.3 else None,
            quotas={"tts": rng.choice([3, 40, 1000])} if rng.random() < 0.5 else None,
            renewal=rng.choice(["never", "daily", "monthly"]),
        )


def rotate(fleet: Fleet) -> None:
    """Give a key a successor."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        overlap = timedelta(seconds=rng.choice([0, 0, 3600]))
        found = origin.store.rotate_key(any_key(fleet, origin).api_key, overlap=overlap)
        key = found.key
        origin.issued.append(Issued(str(key.api_key), key.api_key_id, found.token))


def revoke(fleet: Fleet) -> None:
    """Revoke a key at its origin: it is denied there at once."""
    origin = any_origin(fleet)
    with fleet.acting(origin):
        key = any_key(fleet, origin)
        origin.validator.check(key.token, cost=0)  # (it may be remembered)
        origin.store.revoke_key(key.api_key, reason="leaked")
        _refuse_pass(origin, key)


def revoke_at_hub(fleet: Fleet) -> None:
    """Revoke a key at the hub."""
    origin = any_origin(fleet)
    key = any_key(fleet, origin)
    with fleet.world.acting(fleet.hub_clock):
        fleet.hub.revoke(key.api_key, reason="leaked")


def delete(fleet: Fleet) -> None:
    """Delete a key: it is denied at the origin at once."""
    origin = any_origin(fleet)
    with fleet.acting(origin):
        key = any_key(fleet, origin)
        origin.validator.check(key.token, cost=0)
        origin.store.delete_key(key.api_key)
        _refuse_pass(origin, key)


def suspend(fleet: Fleet) -> None:
    """Suspend a key, or let it pass again."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        status = rng.choice(["suspended", "assigned"])
        origin.store.set_key_status(any_key(fleet, origin).api_key, status)


def change_account(fleet: Fleet) -> None:
    """Close or open an account."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        origin.store.change_account("ada@example.org", is_active=rng.random() < 0.7)


def top_up(fleet: Fleet) -> None:
    """Add to a quota."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        origin.store.top_up(any_key(fleet, origin).api_key, "tts", rng.randint(1, 50))


def credit(fleet: Fleet) -> None:
    """Grant or charge credits; half of the time the request comes twice."""
    origin, rng = any_origin(fleet), fleet.world.rng
    with fleet.acting(origin):
        request = f"r{rng.getrandbits(40)}"
        tokens = rng.randint(1, 5000)
        for _ in range(rng.choice([1, 2])):
            if rng.random() < 0.3:
                origin.store.grant("ada@example.org", "0.25", request_id=f"g{request}")
            else:
                origin.store.charge(
                    "ada@example.org", "large", input_tokens=tokens, request_id=request
                )


def _refuse_pass(origin: Origin, key: Issued) -> None:
    decision = origin.validator.check(key.token, cost=0)
    if decision.allowed:
        raise BrokenError(2, f"{origin.name} lets {key.api_key} pass after it was taken back")
