"""Usage in signed files: each row counts once, and what no enrolled replica signed is refused."""

import base64
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystore import KeystoreError, Store
from keystore.backup import backup, restore
from keystore.db import StoreFile, open_store
from keystore.doctor import examine
from keystore.errors import (
    AlreadyExistsError,
    DamagedStoreError,
    DamagedUsageFileError,
    ForeignUsageFileError,
    ForgedUsageFileError,
    InvalidInputError,
    NotFoundError,
    RevokedUsageKeyError,
    TargetUnavailableError,
    UnreadableUsageFileError,
    WrongRoleError,
)
from keystore.sync import engine, exchange, usage_envelope, usage_files, usage_keys, usage_place
from keystore.sync.engine import Report
from keystore.sync.memory import MemoryHub
from tests.conftest import NewStore
from tests.failures import Children, copy, once, reaching
from tests.test_cli import run

Lines = Callable[[dict[str, object], list[dict[str, object]]], bytes]


def record(path: Path, *amounts: int, request_id: str | bytes | None = None) -> None:
    with open_store(path) as file:
        file.conn.executemany(
            "INSERT INTO UsageLog (principal_type, principal_id, amount, request_id)"
            " VALUES ('api_key', 1, ?, CAST(? AS TEXT))",
            [(amount, request_id) for amount in amounts],
        )


def key_of(replica: Path) -> Path:
    return replica.with_name(f"{replica.name}.usage-key.pem")


class Shop:
    """An origin, a replica whose key it knows, and a folder that is carried between the two."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.stick = folder / "origin.db", folder / "stick"
        self.hub = MemoryHub()
        self.stick.mkdir()
        with Store.create(self.origin) as store:
            store.add_plan("free")
            engine.push(store.file, self.hub, "memory:", Report(""))
        self.replica = self.new_replica("edge.db")

    def new_replica(self, name: str) -> Path:
        path = self.origin.with_name(name)
        engine.replicate(self.hub, "memory:", path, Report(""))
        self.enroll(path)
        return path

    def enroll(self, replica: Path) -> str:
        with open_store(replica) as file, open_store(self.origin) as origin:
            enrolment, fingerprint, _ = usage_keys.make_key(file, key_of(replica))
            usage_keys.enroll(origin, enrolment)
        return fingerprint

    def export(self, replica: Path | None = None, to: Path | None = None) -> list[Path]:
        replica = replica or self.replica
        with open_store(replica) as file:
            written = usage_files.export(file, to or self.stick, key_of(replica))
        return [Path(item.path) for item in written]

    def again(self, first: int, last: int, replica: Path | None = None) -> list[Path]:
        replica = replica or self.replica
        with open_store(replica) as file:
            written = usage_files.export_again(file, self.stick, key_of(replica), first, last)
        return [Path(item.path) for item in written]

    def ingest(self, *paths: Path) -> usage_files.Ingested:
        with open_store(self.origin) as file:
            return usage_files.ingest(file, paths or [self.stick])

    def total(self) -> int:
        with Store.open(self.origin) as store:
            return store.status().received_usage

    def gaps(self) -> list[str]:
        with open_store(self.origin) as file:
            return [gap.missing for gap in usage_files.gaps(file)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    for path in (made.origin, made.replica):
        with open_store(path) as file:
            assert [item for item in examine(file) if item.severity != "info"] == []


# -- once --------------------------------------------------------------------------------------


def test_usage_is_written_once_and_taken_once(shop: Shop) -> None:
    assert shop.export() == []
    record(shop.replica, 1, 2, 3)
    (first,) = shop.export()
    assert shop.export() == []
    record(shop.replica, 10)
    (second,) = shop.export()
    assert (first.name[-13:], second.name[-13:]) == ("-000001.usage", "-000002.usage")
    taken = shop.ingest()
    assert [(item.outcome, item.rows, item.new) for item in taken.taken] == [
        ("taken", 3, 3),
        ("taken", 1, 1),
    ]
    assert {item.outcome for item in shop.ingest().taken} == {"already here"}
    assert (shop.total(), shop.gaps()) == (16, [])


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, list[Path]]:
    """A shop, and nine files of which nothing was taken yet; their amounts are powers of two."""
    shop = Shop(tmp_path_factory.mktemp("nine"))
    for number in range(9):
        record(shop.replica, 2**number)
        shop.export()
    return shop, sorted(shop.stick.iterdir())


@given(order=st.lists(st.integers(0, 8), max_size=20))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_count_once_in_any_order_with_repeats_and_gaps(
    nine: tuple[Shop, list[Path]], order: list[int]
) -> None:
    shop, files = nine
    with tempfile.TemporaryDirectory() as folder:
        with open_store(shop.origin) as file:
            backup(file, Path(folder) / "origin.db")
        with open_store(Path(folder) / "origin.db") as file:
            for index in order:
                assert not usage_files.ingest(file, [files[index]]).refused
            (total,) = file.conn.execute("SELECT total(amount) FROM ReceivedUsage").fetchone()
            missing = {
                number
                for gap in usage_files.gaps(file)
                for number in range(gap.first, gap.last + 1)
            }
    assert total == sum(2**index for index in set(order))
    assert missing == set(range(1, max(order, default=0) + 1)) - {index + 1 for index in order}


def test_many_rows_make_many_files(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_files, "USAGE_PAGE_SIZE", 10)
    record(shop.replica, *[1] * 45)
    assert len(shop.export()) == 5
    assert [item.rows for item in shop.ingest().taken] == [10, 10, 10, 10, 5]
    assert shop.total() == 45


def test_long_texts_make_more_files_rather_than_ones_that_are_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(shop.replica, *[1] * 5, request_id="\1" * (2 << 20))
    assert len(shop.export()) == 3
    assert not shop.ingest().refused
    assert shop.total() == 5


@pytest.mark.parametrize(
    "text",
    ["r ☂ 𝄞", "", '"}\n{"', "\u2028\r\n\t\x1b[2J\x7f", "\u202e", "' OR 1 = 1 --", "x" * 100_000],
)
def test_odd_text_arrives_as_it_was(shop: Shop, text: str) -> None:
    record(shop.replica, 1, request_id=text)
    shop.export()
    assert not shop.ingest().refused
    with open_store(shop.origin) as file:
        assert file.conn.execute("SELECT request_id FROM ReceivedUsage").fetchall() == [(text,)]


def test_text_that_is_not_utf8_does_not_keep_usage_back(shop: Shop) -> None:
    record(shop.replica, 1, request_id=b"\xff")
    record(shop.replica, 2)
    shop.export()
    assert not shop.ingest().refused
    assert shop.total() == 3


def test_extreme_numbers_arrive_as_they_were(shop: Shop) -> None:
    with open_store(shop.replica) as file:
        file.conn.execute(
            "INSERT INTO UsageLog (usage_id, principal_type, principal_id, account_id, amount,"
            " occurred_at, nonce) VALUES (9223372036854775806, 'session', -9223372036854775808,"
            " -1, 9223372036854775807, '2999-12-31 23:59:59', 9223372036854775807)"
        )
    shop.export()
    assert not shop.ingest().refused
    with open_store(shop.origin) as file, open_store(shop.replica) as replica:
        columns = "usage_id, principal_id, account_id, amount, request_id, occurred_at, nonce"
        assert (
            file.conn.execute(f"SELECT {columns} FROM ReceivedUsage").fetchall()
            == replica.conn.execute(f"SELECT {columns} FROM UsageLog").fetchall()
        )


def test_files_and_a_hub_take_the_same_row_under_the_same_identity(shop: Shop) -> None:
    record(shop.replica, 1, 2)
    shop.export()
    shop.ingest()
    with open_store(shop.replica) as file:
        exchange.hand_up_usage(file, shop.hub, "memory:", Report(""))
    with open_store(shop.origin) as file:
        found = set(file.conn.execute("SELECT store_id, usage_id, nonce FROM ReceivedUsage"))
    assert found == shop.hub.usage.keys()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ReceivedUsage SET amount = 0",
        "UPDATE OR IGNORE ReceivedUsage SET amount = 0",
        "DELETE FROM ReceivedUsage",
        (
            "REPLACE INTO ReceivedUsage (store_id, usage_id, nonce, principal_type, principal_id,"
            " amount, occurred_at) SELECT store_id, usage_id, nonce, 'session', 1, 0, occurred_at"
            " FROM ReceivedUsage"
        ),
    ],
)
@pytest.mark.parametrize("recursive", ["ON", "OFF"])
def test_what_was_received_stays_as_it_is(shop: Shop, statement: str, recursive: str) -> None:
    record(shop.replica, 5)
    shop.export()
    shop.ingest()
    with open_store(shop.origin) as file:
        file.conn.execute(f"PRAGMA recursive_triggers = {recursive}")
        if statement.startswith("REPLACE"):
            file.conn.execute(statement)
        else:
            with pytest.raises(Exception, match="append-only"):
                file.conn.execute(statement)
        found = file.conn.execute("SELECT principal_type, amount FROM ReceivedUsage").fetchall()
    assert found == [("api_key", 5)]


# -- numbers -----------------------------------------------------------------------------------


def test_a_lost_file_is_listed_and_written_again_to_the_byte(shop: Shop) -> None:
    for amount in (1, 2, 4, 8, 16):
        record(shop.replica, amount)
        shop.export()
    lost = sorted(shop.stick.iterdir())[1:4]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    assert [gap.missing for gap in shop.ingest().gaps] == ["2-4"]
    assert shop.total() == 17
    assert shop.again(2, 4) == lost
    assert [path.read_bytes() for path in lost] == before
    assert shop.ingest().gaps == []
    assert shop.total() == 31


def test_a_number_that_was_never_written_cannot_be_written_again(shop: Shop) -> None:
    with pytest.raises(NotFoundError):
        shop.again(1, 9)


def test_numbers_are_never_given_to_other_rows(shop: Shop) -> None:
    """The folder is full, then another is taken: the number keeps its rows."""
    record(shop.replica, 1)
    with pytest.raises(TargetUnavailableError), reaching(once("export.drafted", disk_is_full)):
        shop.export()
    assert list(shop.stick.iterdir()) == []
    record(shop.replica, 2)
    other = shop.stick.with_name("other")
    other.mkdir()
    files = shop.export(to=other)
    assert [item.rows for item in shop.ingest(other).taken] == [1, 1]
    assert [path.name[-8:] for path in files] == ["01.usage", "02.usage"]
    assert (shop.total(), shop.gaps()) == (3, [])


def disk_is_full() -> None:
    raise OSError(28, "No space left on device")


def test_a_restored_replica_counts_from_one_again_and_loses_nothing(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    with open_store(shop.replica) as file:
        backup(file, shop.replica.with_name("backup.db"))
    record(shop.replica, 2)
    shop.export()
    restored = shop.replica.with_name("restored.db")
    restore(shop.replica.with_name("backup.db"), restored)
    shutil.copy(key_of(shop.replica), key_of(restored))
    record(restored, 4)
    (path,) = shop.export(restored)
    assert path.name.endswith("-000001.usage")
    assert {item.outcome for item in shop.ingest().taken} == {"taken"}
    assert (shop.total(), shop.gaps()) == (7, [])


def test_a_restored_replica_writes_what_was_lost_before_the_restore_again(shop: Shop) -> None:
    record(shop.replica, 1)
    (lost,) = shop.export()
    lost.unlink()
    restored = shop.replica.with_name("restored.db")
    with open_store(shop.replica) as file:
        backup(file, shop.replica.with_name("backup.db"))
    restore(shop.replica.with_name("backup.db"), restored)
    shutil.copy(key_of(shop.replica), key_of(restored))
    assert shop.export(restored) == []
    assert shop.again(1, 1, restored) == [lost]
    shop.ingest()
    assert shop.total() == 1


def test_copies_of_one_replica_are_named_and_count_what_they_share_once(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    twin = copy(shop.replica, "twin.db")
    shutil.copy(key_of(shop.replica), key_of(twin))
    record(shop.replica, 2)
    record(twin, 2)
    shop.export()
    other = shop.stick.with_name("other")
    other.mkdir()
    shop.export(twin, to=other)
    done = shop.ingest(shop.stick, other)
    assert [item.outcome for item in done.taken] == ["taken", "taken", "copy"]
    assert not done.refused
    assert (shop.total(), shop.gaps()) == (5, [])
    assert {item.outcome for item in shop.ingest(shop.stick, other).taken} == {"already here"}


def test_a_copy_never_overwrites_the_files_of_the_other(shop: Shop) -> None:
    twin = copy(shop.replica, "twin.db")
    shutil.copy(key_of(shop.replica), key_of(twin))
    record(shop.replica, 1)
    record(twin, 2)
    (path,) = shop.export()
    before = path.read_bytes()
    with pytest.raises(AlreadyExistsError):
        shop.export(twin)
    assert [item.read_bytes() for item in shop.stick.iterdir()] == [before]
    other = shop.stick.with_name("other")
    other.mkdir()
    shop.export(twin, to=other)
    shop.ingest(shop.stick, other)
    assert shop.total() == 3


def test_rows_that_were_changed_behind_our_back_are_not_written_again(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    with open_store(shop.replica) as file:
        trigger = "SELECT sql FROM sqlite_master WHERE name = 'trg_usagelog_update'"
        (text,) = file.conn.execute(trigger).fetchone()
        file.conn.execute("DROP TRIGGER trg_usagelog_update")
        file.conn.execute("UPDATE UsageLog SET amount = 100")
        file.conn.execute(text)
    with pytest.raises(DamagedStoreError):
        shop.again(1, 1)


def test_one_high_number_makes_one_gap(shop: Shop) -> None:
    def far(header: dict[str, object], rows: list[dict[str, object]]) -> bytes:
        return lines({**header, "number": 2**63 - 1}, rows)

    record(shop.replica, 1)
    (path,) = shop.export()
    resign(shop, path, far)
    assert shop.gaps() == []
    done = shop.ingest(*shop.stick.glob("*-9*.usage"))
    assert [gap.missing for gap in done.gaps] == [f"1-{2**63 - 2}"]


def test_a_restored_origin_takes_the_files_again(shop: Shop) -> None:
    with open_store(shop.origin) as file:
        backup(file, shop.origin.with_name("backup.db"))
    record(shop.replica, 1, 2)
    shop.export()
    shop.ingest()
    for path in shop.origin.parent.glob("origin.db*"):
        path.unlink()
    restore(shop.origin.with_name("backup.db"), shop.origin)
    assert shop.total() == 0
    shop.ingest()
    assert shop.total() == 3


def test_a_file_system_without_hard_links_will_do(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    record(shop.replica, 1)
    (path,) = shop.export()
    shop.again(1, 1)
    assert [item.name for item in shop.stick.iterdir()] == [path.name]
    shop.ingest()
    assert shop.total() == 1


# -- kills -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.close()


@pytest.mark.parametrize("step", ["noted", "drafted", "placed", "written"])
def test_a_kill_of_an_export_at_any_step_loses_nothing_and_reuses_no_number(
    shop: Shop, children: Children, step: str
) -> None:
    arguments = ("usage", "export", shop.stick, "--db", shop.replica)
    record(shop.replica, 1, 2)
    status, said = children.run(*arguments, step=f"export.{step}")
    assert status == -signal.SIGKILL, said
    assert not shop.ingest().refused  # what is visible is whole
    record(shop.replica, 4)
    status, said = children.run(*arguments)
    assert status == 0, said
    done = shop.ingest()
    assert (done.refused, done.gaps, shop.total()) == ([], [], 7)
    assert {(item.number, item.rows) for item in done.taken} == {(1, 2), (2, 1)}


@pytest.mark.parametrize("step", ["verified", "inserted", "taken"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_of_an_ingest_at_any_step_counts_each_row_once(
    shop: Shop, children: Children, step: str, nth: int
) -> None:
    for amount in (1, 2):
        record(shop.replica, amount)
        shop.export()
    arguments = ("usage", "ingest", shop.stick, "--db", shop.origin)
    status, said = children.run(*arguments, step=f"ingest.{step}", nth=nth)
    assert status == -signal.SIGKILL, said
    assert shop.total() == {1: [0, 1], 2: [1, 3]}[nth][step == "taken"]
    status, said = children.run(*arguments)
    assert status == 0, said
    assert (shop.total(), shop.gaps()) == (3, [])


# -- attacks -----------------------------------------------------------------------------------


def lines(header: dict[str, object], rows: list[dict[str, object]]) -> bytes:
    return b"".join(map(usage_envelope.line, (header, *rows)))


def always(data: bytes) -> Lines:
    return lambda *_: data


def resign(shop: Shop, path: Path, change: Lines, *, packed: bool = True) -> None:
    """Let the enrolled key sign something else in a file's place, under the name that fits."""
    key = usage_keys.load_key(key_of(shop.replica))
    said = usage_envelope.parse(path.read_bytes(), usage_envelope.USAGE_TYPE)
    first, *others = usage_envelope.unpack(said.payload).splitlines()
    changed = change(json.loads(first), [json.loads(row) for row in others])
    payload = usage_envelope.pack(changed) if packed else changed
    data = usage_envelope.seal(key, usage_envelope.USAGE_TYPE, payload)
    path.unlink()
    try:
        header = json.loads(changed.splitlines()[0])
        names = (header["store_id"], header["incarnation"], int(header["number"]))
        path = path.with_name(usage_envelope.file_name(*names))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        pass  # it has no name that would fit
    path.write_bytes(data)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(shop: Shop, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(shop: Shop, path: Path) -> None:
    path.write_bytes(b"")


def be_another_kind_of_file(shop: Shop, path: Path) -> None:
    path.write_bytes(os.urandom(1000))


def nest_deeply(shop: Shop, path: Path) -> None:
    path.write_bytes(b"[" * 1_000_000)


def nest_deeply_inside(shop: Shop, path: Path) -> None:
    path.write_bytes(b'{"payload":' + b"[" * 1_000_000)


def change_a_byte(shop: Shop, path: Path) -> None:
    payload = bytearray(base64.b64decode(json.loads(path.read_text())["payload"]))
    payload[len(payload) // 2] ^= 1
    edit(path, payload=base64.b64encode(payload).decode())


def take_the_payload_of_another(shop: Shop, path: Path) -> None:
    record(shop.replica, 100)
    (other,) = shop.export()
    edit(path, payload=json.loads(other.read_text())["payload"])
    other.unlink()


def claim_to_be_another_kind(shop: Shop, path: Path) -> None:
    edit(path, payloadType="application/octet-stream")


def pass_an_enrolment_off_as_usage(shop: Shop, path: Path) -> None:
    with open_store(shop.replica) as file:
        path.write_bytes(usage_keys.make_key(file, key_of(shop.replica))[0])
    edit(path, payloadType=usage_envelope.USAGE_TYPE)


def sign_with_an_unknown_key(shop: Shop, path: Path) -> None:
    key_of(shop.replica).write_bytes(usage_envelope.private_pem(Ed25519PrivateKey.generate()))
    resign(shop, path, lines)


def sign_with_an_unknown_key_in_the_name_of_a_known_one(shop: Shop, path: Path) -> None:
    known = json.loads(path.read_text())["signatures"][0]["keyid"]
    sign_with_an_unknown_key(shop, path)
    signature = json.loads(path.read_text())["signatures"][0]
    edit(path, signatures=[{**signature, "keyid": known}])


def drop_the_signature(shop: Shop, path: Path) -> None:
    edit(path, signatures=[])


def empty_the_signature(shop: Shop, path: Path) -> None:
    signature = json.loads(path.read_text())["signatures"][0]
    edit(path, signatures=[{**signature, "sig": ""}])


def revoke_the_key(shop: Shop, path: Path) -> None:
    with open_store(shop.origin) as file:
        key, *_ = usage_keys.keys(file)
        usage_keys.revoke_key(file, key.fingerprint)


def come_again_under_another_number(shop: Shop, path: Path) -> None:
    path.rename(path.with_name(path.name.replace("000001", "000002")))


def speak_for_another_replica(shop: Shop, path: Path) -> None:
    other = shop.new_replica("other.db")
    with open_store(other) as file:
        store_id = file.info().store_id
    resign(shop, path, lambda header, rows: lines({**header, "store_id": store_id}, rows))


def speak_to_another_origin(shop: Shop, path: Path) -> None:
    resign(
        shop,
        path,
        lambda header, rows: lines({**header, "origin_id": header["store_id"]}, rows),
    )


def be_a_bomb(shop: Shop, path: Path) -> None:
    resign(shop, path, always(b"\0" * (usage_envelope.MAX_LINES_BYTES + 1)))


def be_a_huge_bomb(shop: Shop, path: Path) -> None:
    frame = usage_envelope.pack(b"\0" * (1 << 20))
    resign(shop, path, always(frame * 2000), packed=False)


def be_endless(shop: Shop, path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse


def be_unpacked(shop: Shop, path: Path) -> None:
    resign(shop, path, lines, packed=False)


def be_half_a_frame(shop: Shop, path: Path) -> None:
    def half(header: dict[str, object], rows: list[dict[str, object]]) -> bytes:
        return usage_envelope.pack(lines(header, rows))[:-10]

    resign(shop, path, half, packed=False)


def say_another_count(shop: Shop, path: Path) -> None:
    resign(shop, path, lambda header, rows: lines({**header, "count": 4}, rows))


def say_other_ends(shop: Shop, path: Path) -> None:
    resign(shop, path, lambda header, rows: lines({**header, "last_usage_id": 4}, rows))


def repeat_a_row(shop: Shop, path: Path) -> None:
    def change(header: dict[str, object], rows: list[dict[str, object]]) -> bytes:
        return lines({**header, "count": 4}, [rows[0], *rows])

    resign(shop, path, change)


def hold_nothing(shop: Shop, path: Path) -> None:
    resign(shop, path, lambda header, _: lines({**header, "count": 0}, []))


def hold_an_empty_frame(shop: Shop, path: Path) -> None:
    resign(shop, path, always(b""))


def with_row(**values: object) -> Callable[[Shop, Path], None]:
    def attack(shop: Shop, path: Path) -> None:
        def change(header: dict[str, object], rows: list[dict[str, object]]) -> bytes:
            return lines(header, [{**row, **values} for row in rows])

        resign(shop, path, change)

    attack.__name__ = f"with_row {values}"[:50]
    return attack


def with_header(**values: object) -> Callable[[Shop, Path], None]:
    def attack(shop: Shop, path: Path) -> None:
        resign(shop, path, lambda header, rows: lines({**header, **values}, rows))

    attack.__name__ = f"with_header {values}"[:50]
    return attack


ATTACKS: list[tuple[Callable[[Shop, Path], None], str]] = [
    (cut, "damaged_usage_file"),
    (empty, "damaged_usage_file"),
    (be_another_kind_of_file, "damaged_usage_file"),
    (nest_deeply, "damaged_usage_file"),
    (nest_deeply_inside, "damaged_usage_file"),
    (change_a_byte, "forged_usage_file"),
    (take_the_payload_of_another, "forged_usage_file"),
    (claim_to_be_another_kind, "damaged_usage_file"),
    (pass_an_enrolment_off_as_usage, "forged_usage_file"),
    (sign_with_an_unknown_key, "unknown_usage_key"),
    (sign_with_an_unknown_key_in_the_name_of_a_known_one, "forged_usage_file"),
    (drop_the_signature, "damaged_usage_file"),
    (empty_the_signature, "forged_usage_file"),
    (revoke_the_key, "revoked_usage_key"),
    (come_again_under_another_number, "renamed_usage_file"),
    (speak_for_another_replica, "misattributed_usage_file"),
    (speak_to_another_origin, "foreign_usage_file"),
    (be_a_bomb, "large_usage_file"),
    (be_a_huge_bomb, "damaged_usage_file"),
    (be_endless, "large_usage_file"),
    (be_unpacked, "damaged_usage_file"),
    (be_half_a_frame, "damaged_usage_file"),
    (say_another_count, "damaged_usage_file"),
    (say_other_ends, "damaged_usage_file"),
    (repeat_a_row, "damaged_usage_file"),
    (hold_nothing, "damaged_usage_file"),
    (hold_an_empty_frame, "damaged_usage_file"),
    (with_row(amount=-1), "damaged_usage_file"),
    (with_row(amount="5"), "damaged_usage_file"),
    (with_row(amount=1.5), "damaged_usage_file"),
    (with_row(amount=2**63), "damaged_usage_file"),
    (with_row(nonce=None), "damaged_usage_file"),
    (with_row(principal_type="admin"), "damaged_usage_file"),
    (with_row(request_id="a\0b"), "damaged_usage_file"),
    (with_row(occurred_at="2027-02-30 00:00:00"), "damaged_usage_file"),
    (with_row(occurred_at="0999-01-01 00:00:00"), "damaged_usage_file"),
    (with_row(occurred_at="2027-01-01"), "damaged_usage_file"),
    (with_row(more=1), "damaged_usage_file"),
    (with_header(number=0), "damaged_usage_file"),
    (with_header(number=2**63), "damaged_usage_file"),
    (with_header(incarnation="../../../../../../../../etc/passwd-xx"), "damaged_usage_file"),
    (with_header(more=1), "damaged_usage_file"),
]


@pytest.mark.parametrize(
    ("attack", "code"), ATTACKS, ids=lambda item: getattr(item, "__name__", "")
)
def test_an_attack_is_refused_by_name_and_the_other_files_are_taken(
    shop: Shop, attack: Callable[[Shop, Path], None], code: str
) -> None:
    good = shop.new_replica("good.db")
    record(good, 1000)
    record(shop.replica, 1, 2, 3)
    (path,) = shop.export()
    attack(shop, path)
    shop.export(good)
    said = run("usage", "ingest", str(shop.stick), "--json", "--db", str(shop.origin))
    assert said.exit_code == 1
    report = json.loads(said.stdout)
    assert [item["code"] for item in report["refused"]] == [code]
    assert report["refused"][0]["hint"]
    assert [item["new"] for item in report["taken"]] == [1]
    assert shop.total() == 1000
    text = run("usage", "ingest", str(shop.stick), "--db", str(shop.origin))
    assert text.exit_code == 1
    assert f"refused ({code})" in text.output
    assert len(text.output.splitlines()) == 2


def test_what_a_revoked_key_has_signed_may_come_again_but_nothing_more(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    shop.ingest()
    record(shop.replica, 2)
    (second,) = shop.export()
    revoke_the_key(shop, second)
    done = shop.ingest()
    assert [item.outcome for item in done.taken] == ["already here"]
    assert [item.code for item in done.refused] == ["revoked_usage_key"]
    key_of(shop.replica).unlink()
    shop.enroll(shop.replica)
    second.unlink()
    shop.again(2, 2)
    assert not shop.ingest().refused
    assert shop.total() == 3


def test_a_replica_may_change_its_key_and_both_count(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    key_of(shop.replica).unlink()
    shop.enroll(shop.replica)
    record(shop.replica, 2)
    shop.export()
    assert not shop.ingest().refused
    assert shop.total() == 3


# -- folders -----------------------------------------------------------------------------------


def test_links_pipes_and_folders_inside_a_folder_are_refused(shop: Shop) -> None:
    record(shop.replica, 1)
    (path,) = shop.export()
    elsewhere = shop.stick.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    (shop.stick / "loop.usage").symlink_to(shop.stick / "loop.usage")
    (shop.stick / "secret.usage").symlink_to("/etc/passwd")
    (shop.stick / "folder.usage").mkdir()
    os.mkfifo(shop.stick / "pipe.usage")
    (shop.stick / "notes.txt").write_text("not looked at")
    done = shop.ingest()
    assert {item.code for item in done.refused} == {"unreadable_usage_file"}
    assert (len(done.refused), done.taken) == (5, [])
    assert not any("root:" in item.message for item in done.refused)
    path.unlink()
    (shop.stick.parent / "link").symlink_to(elsewhere)
    assert [item.code for item in shop.ingest(shop.stick.parent / "link").refused] == [
        "renamed_usage_file"  # what is named is followed, and has to have its name
    ]
    assert not shop.ingest(elsewhere).refused
    assert shop.total() == 1


def test_endless_devices_missing_files_and_names_that_are_no_text_are_refused(shop: Shop) -> None:
    odd = Path(os.fsdecode(bytes(shop.stick) + b"/\xff\n\x1b[2J.usage"))
    odd.write_bytes(b"x")
    done = shop.ingest(Path("/dev/zero"), shop.stick / "none.usage", shop.stick)
    assert [item.code for item in done.refused] == [
        "unreadable_usage_file",
        "unreadable_usage_file",
        "damaged_usage_file",
    ]
    for flag in ([], ["--json"]):
        said = run("usage", "ingest", str(shop.stick), "--db", str(shop.origin), *flag)
        assert said.exit_code == 1
        assert "\x1b" not in said.output


def test_a_file_that_may_not_be_read_is_refused(shop: Shop) -> None:
    path = shop.stick / "x.usage"
    path.write_bytes(b"x")
    path.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(UnreadableUsageFileError, match="Permission denied"):
            usage_place.read(path, 10, follow=False)
    finally:
        os.seteuid(before)


def test_a_half_written_draft_is_not_looked_at(shop: Shop) -> None:
    (shop.stick / ".x-000001.usage.1234.draft").write_bytes(b"half")
    assert shop.ingest() == usage_files.Ingested([], [], [])


def test_a_file_that_is_larger_than_allowed_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 11)
    assert usage_place.read(path, 11, follow=True) == b"x" * 11
    with pytest.raises(KeystoreError, match="more than 10 bytes"):
        usage_place.read(path, 10, follow=True)


# -- keys --------------------------------------------------------------------------------------


def enrolment_of(replica: Path) -> bytes:
    with open_store(replica) as file:
        return usage_keys.make_key(file, key_of(replica))[0]


def test_a_private_key_is_for_its_owner_only_and_not_in_the_store(shop: Shop) -> None:
    path = key_of(shop.replica)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_bytes().splitlines()[1]
    record(shop.replica, 1)
    shop.export()
    for other in shop.origin.parent.rglob("*"):
        if other.is_file() and other != path:
            assert secret not in other.read_bytes()


def test_a_key_is_made_once_and_enrolled_once(shop: Shop) -> None:
    with open_store(shop.replica) as file, open_store(shop.origin) as origin:
        enrolment, fingerprint, is_new = usage_keys.make_key(file, key_of(shop.replica))
        assert not is_new
        key, is_new = usage_keys.enroll(origin, enrolment)
        assert (key.fingerprint, is_new) == (fingerprint, False)
        assert len(usage_keys.keys(origin)) == 1


def test_an_enrolment_needs_the_private_key(shop: Shop) -> None:
    """Or one replica's public key could be enrolled in the name of another."""
    said, _ = usage_envelope.parse_enrolment(enrolment_of(shop.replica))
    other = shop.new_replica("other.db")
    with open_store(other) as file:
        stolen = said.model_copy(update={"store_id": file.info().store_id})
    data = usage_envelope.seal(
        Ed25519PrivateKey.generate(),
        usage_envelope.ENROLMENT_TYPE,
        stolen.model_dump_json().encode(),
    )
    with open_store(shop.origin) as file, pytest.raises(ForgedUsageFileError):
        usage_keys.enroll(file, data)


def test_a_key_belongs_to_one_replica(shop: Shop) -> None:
    other = shop.new_replica("other.db")
    shutil.copy(key_of(shop.replica), key_of(other))
    with open_store(shop.origin) as file, pytest.raises(AlreadyExistsError, match="enrolled for"):
        usage_keys.enroll(file, enrolment_of(other))


def test_a_key_of_another_origins_replica_is_refused(shop: Shop, new_store: NewStore) -> None:
    with pytest.raises(ForeignUsageFileError):
        usage_keys.enroll(new_store("foreign.db").file, enrolment_of(shop.replica))


def test_a_revoked_key_does_not_come_back(shop: Shop) -> None:
    revoke_the_key(shop, shop.stick)
    with open_store(shop.origin) as file:
        with pytest.raises(RevokedUsageKeyError):
            usage_keys.enroll(file, enrolment_of(shop.replica))
        with pytest.raises(NotFoundError):
            usage_keys.revoke_key(file, "00")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda _: b"",
        lambda data: data.replace(b"usage-key", b"usage-kex"),
        lambda _: b"{}",
        lambda _: usage_envelope.seal(
            Ed25519PrivateKey.generate(), usage_envelope.ENROLMENT_TYPE, b"{}"
        ),
    ],
)
def test_a_damaged_enrolment_is_refused(shop: Shop, damage: Callable[[bytes], bytes]) -> None:
    with open_store(shop.origin) as file, pytest.raises(DamagedUsageFileError):
        usage_keys.enroll(file, damage(enrolment_of(shop.replica)))


@pytest.mark.parametrize("kind", ["other", "none"])
def test_a_public_key_of_another_kind_is_refused(shop: Shop, kind: str) -> None:
    said, _ = usage_envelope.parse_enrolment(enrolment_of(shop.replica))
    pem = (
        X25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    changed = said.model_copy(update={"public_key": pem.decode() if kind == "other" else "x"})
    data = usage_envelope.seal(
        usage_keys.load_key(key_of(shop.replica)),
        usage_envelope.ENROLMENT_TYPE,
        changed.model_dump_json().encode(),
    )
    with open_store(shop.origin) as file, pytest.raises(DamagedUsageFileError):
        usage_keys.enroll(file, data)


@pytest.mark.parametrize("text", [None, "", "no key", "-----BEGIN PRIVATE KEY-----"])
def test_a_private_key_that_is_missing_or_none_is_said(shop: Shop, text: str | None) -> None:
    key_of(shop.replica).unlink()
    if text is not None:
        key_of(shop.replica).write_text(text)
    record(shop.replica, 1)
    with pytest.raises(InvalidInputError, match="usage key"):
        shop.export()
    with open_store(shop.replica) as file:  # and no number was given
        assert file.conn.execute("SELECT count(*) FROM UsageFiles").fetchone() == (0,)


# -- the command line --------------------------------------------------------------------------


def test_each_command_belongs_to_one_role(shop: Shop) -> None:
    enrolment = shop.stick.with_name("enrolment")
    enrolment.write_bytes(enrolment_of(shop.replica))
    for arguments, path in (
        (["key", str(shop.stick / "x")], shop.origin),
        (["export", str(shop.stick)], shop.origin),
        (["export", str(shop.stick), "--again", "1"], shop.origin),
        (["enroll", str(enrolment)], shop.replica),
        (["keys"], shop.replica),
        (["revoke-key", "00"], shop.replica),
        (["ingest", str(shop.stick)], shop.replica),
        (["gaps"], shop.replica),
    ):
        said = run("usage", *arguments, "--json", "--db", str(path))
        assert said.exit_code == 1
        assert json.loads(said.output)["error"]["code"] == WrongRoleError.code
    assert list(shop.stick.iterdir()) == []


@pytest.mark.parametrize("numbers", ["0", "x", "3-1", "1-", "-1", "1-2-3", "9" * 30])
def test_numbers_that_are_none_are_wrong_usage(shop: Shop, numbers: str) -> None:
    said = run("usage", "export", str(shop.stick), f"--again={numbers}", "--db", str(shop.replica))
    assert said.exit_code == 2


def test_without_the_extra_the_command_says_which(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "keystore.sync.usage_files")
    monkeypatch.delattr("keystore.sync.usage_files")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    said = run("usage", "gaps", "--db", str(shop.origin))
    assert said.exit_code == 1
    assert "keystore[files]" in said.output


def test_usage_handed_to_files_by_sync_is_pointed_to_export(shop: Shop) -> None:
    from keystore.sync import repository
    from keystore.sync.folder import Folder

    repository.create(Folder(shop.stick / "files"), shop.stick / "keys")
    said = run("sync", "--db", str(shop.replica), "--usage-to", str(shop.stick / "files"))
    assert said.exit_code == 1
    assert "keystore usage export" in said.output


def test_many_replicas_in_one_heap_are_told_apart(shop: Shop) -> None:
    replicas = [shop.replica, *(shop.new_replica(f"edge{n}.db") for n in range(3))]
    for amount, replica in enumerate(replicas, 1):
        for _ in range(3):
            record(replica, 10**amount)
            shop.export(replica)
    files = sorted(shop.stick.iterdir(), key=lambda path: path.name[-9::-1])
    assert not shop.ingest(*files).refused
    assert shop.total() == 33330


def test_a_store_that_is_copied_as_a_file_has_no_key(shop: Shop, new_store: NewStore) -> None:
    twin = copy(shop.replica, "twin.db")
    record(twin, 1)
    with pytest.raises(InvalidInputError):
        shop.export(twin)


def count(file: StoreFile) -> int:
    (number,) = file.conn.execute("SELECT count(*) FROM UsageFiles").fetchone()
    return int(number)


def test_a_file_that_the_store_cannot_take_leaves_nothing_of_itself(shop: Shop) -> None:
    record(shop.replica, 1)
    shop.export()
    with open_store(shop.origin) as file:
        file.conn.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON main.ReceivedUsage"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        assert [item.code for item in usage_files.ingest(file, [shop.stick]).refused] == [
            "constraint"
        ]
        assert count(file) == 0


def test_an_enrolment_that_is_refused_is_named(shop: Shop) -> None:
    path = shop.stick / "edge.enrolment"
    for text in (None, "x", "x" * 100_000):
        if text:
            path.write_text(text)
        said = run("usage", "enroll", str(path), "--db", str(shop.origin))
        assert said.exit_code == 1
        assert said.output.startswith(f"keystore: {path}: ")
        assert len(said.output.splitlines()) == 1
