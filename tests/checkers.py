"""What checkers of tests have in common."""

from keystore import Decision


class KeysOnly:
    """Is never asked for an OAuth client."""

    def check_client(
        self,
        client_id: str,
        secret: str,
        *,
        service: str | None = None,
        cost: int = 1,
        ip: str | None = None,
    ) -> Decision:
        raise AssertionError((client_id, service, cost, ip))
