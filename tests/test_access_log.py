"""The real access log through nginx and `keystore serve`: the usage of each client is the log's."""

import http.client
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples import access_log
from keystore import Store
from tests.buckets import free_ports
from tests.proxies import KINDS, Checker, proxy

NGINX = KINDS[0]
CONNECTIONS = 4
APPLICATION = "server {{ listen 127.0.0.1:{port}; return 200 'served\\n'; }}\nupstream app {{"
USAGE = """
SELECT k.label, sum(u.amount)
FROM UsageLog AS u
JOIN APIKeys AS k ON u.principal_type = 'api_key' AND k.api_key_id = u.principal_id
GROUP BY k.label
"""


def replay(url: str, requests: list[access_log.Request], tokens: dict[str, str]) -> Counter[int]:
    """Send requests over one connection; count the answers by their status."""
    conn = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    statuses: Counter[int] = Counter()
    for client, method, target in requests:
        headers = {"Authorization": f"Bearer {tokens[client]}"}
        conn.request(method or "GET", target or "/", headers=headers)
        response = conn.getresponse()
        response.read()
        statuses[response.status] += 1
    conn.close()
    return statuses


@pytest.mark.skipif(NGINX.program is None, reason="nginx is not installed")
def test_usage_per_client_is_what_the_access_log_says(store: Store, tmp_path: Path) -> None:
    log = list(access_log.requests())
    expected = Counter(request.client for request in log)
    tokens = {client: store.issue_key("ada@example.org", label=client).token for client in expected}
    checks, application = free_ports(2)
    checker = Checker(tmp_path / "checker", checks)
    checker.up(store.file.path, "--workers", "2")
    try:
        edits = {"upstream app {": APPLICATION.format(port=application)}
        with proxy(NGINX, tmp_path / "nginx", checks, application, edits) as url:
            parts = [log[number::CONNECTIONS] for number in range(CONNECTIONS)]
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                counts = pool.map(lambda part: replay(url, part, tokens), parts)
                statuses = sum(counts, Counter[int]())
        checker.end()
    finally:
        checker.kill()
    assert statuses == {200: len(log)}
    assert dict(store.file.conn.execute(USAGE)) == expected
