"""What a charge costs, against the bare SQL transaction that it needs."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Side, compare, main
from benchmarks.results import Row
from keystore import Store

GOAL = 2.0
_CHARGES = 200
"""How many make a round, each a transaction of its own."""
_ADA, _MODEL = "ada@example.org", "gpt-5-chat"

# What no charge can do without: who pays, the price in force, the balance, and the two rows. The
# triggers of the ledger are part of it: they are what keeps the balance.
_ACCOUNT = "SELECT account_id FROM Accounts WHERE email = ?"
_REQUEST = "SELECT ledger_id FROM CreditLedger WHERE request_id = ? AND account_id = ?"
_PRICE = """
SELECT c.model_pricing_id, c.input_nano_per_1k, c.output_nano_per_1k
FROM Models AS m
JOIN ModelPricing AS c ON c.model_id = m.model_id AND c.effective_from <= CURRENT_TIMESTAMP
WHERE m.name = ?
ORDER BY c.effective_from DESC
LIMIT 1
"""
_BALANCE = "SELECT balance_nano FROM CreditBalances WHERE account_id = ?"
_USAGE = """
INSERT INTO UsageLog (principal_type, principal_id, account_id, amount, request_id)
VALUES ('session', ?, ?, ?, ?)
"""
_ENTRY = """
INSERT INTO CreditLedger (account_id, kind, amount_nano, balance_nano, request_id, model,
                          model_pricing_id, input_tokens, output_tokens, usage_id)
VALUES (?, 'charge', ?, ?, ?, ?, ?, ?, ?, ?)
"""


def measure(quick: bool) -> list[Row]:
    """Measure charges with a request id, one transaction each, on a store of a few models."""
    with TemporaryDirectory(prefix="keystore-bench-") as folder, ExitStack() as stack:
        ours, bare = (
            stack.enter_context(_store(Path(folder) / name)) for name in ("ours.db", "bare.db")
        )
        return [
            compare(
                "charge, with a request id",
                "its bare SQL transaction",
                _side(ours, lambda number: _charge(ours, number)),
                _side(bare, lambda number: _charge_bare(bare, number)),
                goal=GOAL,
                quick=quick,
            )
        ]


def _store(path: Path) -> Store:
    store = Store.create(path)
    # A checkpoint after every thousandth page or so would fall into more rounds of one side than of
    # the other; each round begins after one of its own instead.
    store.file.conn.execute("PRAGMA wal_autocheckpoint = 0")
    store.add_plan("bench")
    store.add_account(_ADA, plan="bench")
    store.add_provider("openai")
    for name in (_MODEL, *(f"model {number}" for number in range(20))):
        store.add_model(name, provider="openai", input_per_1k="0.00125", output_per_1k="0.01")
    store.grant(_ADA, "1000000")
    return store


def _charge(store: Store, number: int) -> None:
    store.charge(_ADA, _MODEL, input_tokens=900, output_tokens=100, request_id=f"request {number}")


def _charge_bare(store: Store, number: int) -> None:
    request = f"request {number}"
    with store.file.write() as conn:
        (account,) = conn.execute(_ACCOUNT, (_ADA,)).fetchone()
        if conn.execute(_REQUEST, (request, account)).fetchone() is not None:
            return
        pricing, per_input, per_output = conn.execute(_PRICE, (_MODEL,)).fetchone()
        cost = -(-(900 * per_input + 100 * per_output) // 1000)
        (balance,) = conn.execute(_BALANCE, (account,)).fetchone()
        usage = conn.execute(_USAGE, (account, account, 1000, request)).lastrowid
        entry = (account, -cost, balance - cost, request, _MODEL, pricing, 900, 100, usage)
        conn.execute(_ENTRY, entry)


def _side(store: Store, charge: Callable[[int], None]) -> Side:
    done = 0

    def run() -> None:
        nonlocal done
        for number in range(done, done + _CHARGES):
            charge(number)
        done += _CHARGES

    def prepare() -> None:
        store.file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    return Side(run, prepare)


if __name__ == "__main__":
    main(measure)
