"""What ``/metrics`` says: it is what the docs say, it adds up over workers, and names nobody."""

import os
import re
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keystore import Store
from tests.test_server import Start, start, token
from tests.test_workers import has_restarted, statuses, until

__all__ = ["start", "token"]

DOCS = Path(__file__).parent.parent / "docs" / "serve.md"


def test_the_docs_name_every_metric_with_its_type_and_labels(start: Start, token: str) -> None:
    server = start()
    server.get("/check", token)
    text = server.get("/metrics").body.decode()
    told = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            ", ".join(
                sorted({name for sample in family.samples for name in sample.labels} - {"le"})
            ),
        )
        for family in text_string_to_metric_families(text)
    }
    row = re.compile(r"^\| `(keystore_\w+)` \| (\w+) \| (?:`(\w+)`)? ?\|", re.MULTILINE)
    assert set(row.findall(DOCS.read_text())) == told


@pytest.mark.parametrize("workers", [1, 3])
def test_every_check_and_every_answer_is_counted_over_all_workers(
    store: Store, start: Start, token: str, workers: int
) -> None:
    revoked = store.issue_key("ada@example.org")
    store.revoke_key(revoked.key.api_key)
    server = start("--workers", workers, "--flush-seconds", 3600)
    assert statuses(server, token, 48).count(200) == 48
    assert statuses(server, revoked.token, 32).count(401) == 32
    assert server.get("/check").status == 401
    assert server.raw(b"GET /check HTTP/1.1\r\nX: a\0\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    found = server.metrics()
    assert found["keystore_decisions_total{reason=ok}"] == 48
    assert found["keystore_decisions_total{reason=revoked}"] == 32
    assert found["keystore_http_responses_total{status=200}"] == 48
    assert found["keystore_http_responses_total{status=401}"] == 33
    assert found["keystore_http_responses_total{status=400}"] == 1
    assert found["keystore_http_refused_total{kind=bad_request}"] == 1
    assert found["keystore_http_request_seconds_count"] == 82
    assert found["keystore_ready"] == 1
    assert found["keystore_data_age_seconds"] == 0
    assert found["keystore_as_of_change"] == store.status().last_change
    until(lambda: server.metrics()["keystore_usage_unflushed"] == 48)
    until(lambda: server.metrics()["keystore_cached_tokens"] >= 1)
    until(lambda: server.metrics()["keystore_slow_checks_total"] >= 33)


def test_no_counter_runs_back_when_a_worker_dies(start: Start, token: str) -> None:
    server = start("--workers", 2)
    assert statuses(server, token, 64).count(200) == 64
    before = server.metrics()
    for process_id in server.children():
        os.kill(process_id, signal.SIGKILL)
    until(lambda: len(server.children()) == 2)
    until(lambda: has_restarted(server, 2))
    after = server.metrics()
    counters = [name for name in before if "_total" in name or "_seconds_" in name]
    assert all(after[name] >= before[name] for name in counters)
    assert after["keystore_decisions_total{reason=ok}"] == 64


def test_usage_that_waits_for_a_target_is_told(store: Store, start: Start, token: str) -> None:
    server = start("--max-pending", 1)
    assert statuses(server, token, 16).count(200) == 16
    until(lambda: server.metrics()["keystore_usage_waiting"] == 16)


def test_no_token_account_key_or_plan_is_in_the_metrics(store: Store, start: Start) -> None:
    store.add_plan("secretplan", rate_limit=1, rate_window_seconds=3600)
    store.add_account("bob@example.org", plan="secretplan")
    issued = store.issue_key("bob@example.org")
    server = start()
    for path in ("/check", "/services/secretservice/check", "/nginx/check", "/secretpath"):
        server.get(path, issued.token)
    text = server.get("/metrics").body.decode()
    assert "secret" not in text
    assert "bob" not in text
    assert issued.key.api_key not in text
    assert issued.token not in text
