"""What ``/metrics`` says: it is what the docs say, it adds up over workers, and names nobody."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from keystore import Store
from keystore.http import connection, counts
from tests.serving import Server
from tests.test_server import Start, start, token
from tests.test_workers import has_restarted, statuses, until

__all__ = ["start", "token"]

TOP = Path(__file__).parent.parent
DOCS = TOP / "docs" / "reference" / "metrics.md"
ALERTS = TOP / "examples" / "alerts.yaml"
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds to all that it reads."""


def metrics_text(server: Server, token: str) -> str:
    server.get("/check", token)
    return server.get("/metrics").body.decode()


def test_the_docs_name_every_metric_with_its_type_and_labels(start: Start, token: str) -> None:
    text = metrics_text(start(), token)
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


def test_the_docs_name_every_kind_of_refusal_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3})", DOCS.read_text(), re.MULTILINE)
    kinds = {kind: str(status.value) for status, kind in connection._KINDS.items()}
    assert dict(rows) == kinds | {"connections": "503", "error": "503"}
    assert dict(rows).keys() == set(counts.REFUSALS)


# -- alerts ------------------------------------------------------------------------------------

RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]
}


def nodes(expression: Any) -> Iterator[Any]:
    """Walk through a parsed expression."""
    yield expression
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        part = getattr(expression, name, None)
        if part is not None:
            yield from nodes(part)
    for part in getattr(expression, "args", ()):
        yield from nodes(part)


def test_each_alert_asks_for_metrics_and_labels_that_a_running_server_has(
    start: Start, token: str
) -> None:
    known: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in text_string_to_metric_families(metrics_text(start(), token)):
        for sample in family.samples:
            of_metric = known.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                of_metric.setdefault(name, set()).add(value)
    for alert, rule in RULES.items():
        found = list(nodes(promql_parser.parse(rule["expr"])))
        asked = [node for node in found if isinstance(node, promql_parser.VectorSelector)]
        assert asked, alert
        labels = set(SCRAPED)
        for selector in asked:
            assert selector.name in known, (alert, selector.name)
            labels |= set(known[selector.name])
            for matcher in selector.matchers.matchers:
                if matcher.name not in SCRAPED:
                    values = known[selector.name][matcher.name]
                    assert set(matcher.value.split("|")) <= values, (alert, matcher.value)
        for names_of in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            assert set(names_of.split(", ")) <= labels, (alert, names_of)


def test_each_alert_is_explained() -> None:
    told = re.findall(r"^\| `(Keystore\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(told) == sorted(RULES)
    for rule in RULES.values():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]


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
