"""Nothing enters unsigned: each attack on a repository has its own code, and changes nothing."""

import gc
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Timestamp

from keystore import KeystoreError, Store, Validator, clock, db
from keystore.db import open_store
from keystore.sync import repository, repository_keys, rotation, targets
from keystore.sync.folder import Folder
from keystore.sync.repository_format import SNAPSHOT_NAME
from keystore.tokens import hash_token, new_token
from tests.signed import Forgery, Site, everything_of, forge, is_clean, put_back
from tests.webserver import serving

Attack = Callable[[Site], object]

EXISTING, RESTARTING, FRESH = "existing", "restarting", "fresh"
"""A replica that gets segments; one that must take everything; one that is being made."""
ALL = (EXISTING, RESTARTING, FRESH)
KNOWING = (EXISTING, RESTARTING)
EITHER = (EXISTING, FRESH)
WHOLE = (RESTARTING, FRESH)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("template")
    with Store.create(folder / "origin.db") as store:
        store.add_plan("free")
        store.add_account("ada@example.org", plan="free")
        return Site(store, folder)


@pytest.fixture
def site(template: Site, tmp_path: Path) -> Iterator[Site]:
    with template.copied(tmp_path / "site") as copy:
        yield copy


def refuses(site: Site, victim: str, attack: Attack, code: str) -> None:
    """Attack what is published; the victim says ``code`` and is as before; restore; it goes on."""
    if victim == RESTARTING:
        with site.store.file.write() as conn:
            db.renew_incarnation(conn)
    site.store.add_plan("published, then attacked")
    later = site.store.issue_key("ada@example.org").token
    site.publish()
    folder, beside = site.replica.parent, site.folder.with_name("as it was")
    new = folder / "new.db"
    before = everything_of(site.replica)
    with put_back(site.folder, beside) as restore, Validator(site.replica) as validator:
        assert validator.check(site.token).allowed
        attack(site)
        for _ in range(2):  # what the first attempt leaves does not help the second
            with pytest.raises(KeystoreError) as caught:
                site.replicate(new) if victim == FRESH else site.pull()
            assert caught.value.code == code, caught.value
            assert caught.value.hint
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 1000
        assert everything_of(site.replica) == before
        assert validator.check(site.token).allowed
        assert not validator.check(later).allowed
        assert is_clean(folder, site.replica)
        restore()
    if victim == FRESH:
        site.replicate(new)
    site.pull()
    assert site.allows(later)
    assert is_clean(folder, site.replica, new)
    assert not [path for path in folder.iterdir() if path.is_dir()]


def table(*cases: tuple[Attack, str, tuple[str, ...]]) -> pytest.MarkDecorator:
    rows = [
        pytest.param(attack, code, victim, id=f"{attack.__name__}-{victim}")
        for attack, code, victims in cases
        for victim in victims
    ]
    return pytest.mark.parametrize(("attack", "code", "victim"), rows)


# -- who can write to the place, and has no key ------------------------------------------------


def named(act: Callable[[Site, Path], object], name: str) -> Attack:
    def attack(site: Site) -> None:
        act(site, site.file_of(name))

    attack.__name__ = f"{act.__name__}-{name.partition('.')[0]}"
    return attack


def change_a_byte(_: Site, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_it_short(_: Site, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty_it(_: Site, path: Path) -> None:
    path.write_bytes(b"")


def lengthen_it(_: Site, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def make_it_endless(_: Site, path: Path) -> None:
    os.truncate(path, 1 << 40)  # (a hole: a terabyte to read, nothing on the disk)


def remove_it(_: Site, path: Path) -> None:
    path.unlink()


def make_it_a_folder(_: Site, path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_it_a_pipe(_: Site, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_it_a_device(_: Site, path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def swap_it(site: Site, path: Path) -> None:
    """Put the other one there; a longer one is noticed by that already."""
    others = [p for p in (site.file_of(SNAPSHOT_NAME), site.file_of("changes")) if p != path]
    path.write_bytes(others[0].read_bytes())


FILE_ATTACKS: list[tuple[Callable[[Site, Path], None], str]] = [
    (change_a_byte, "altered_file"),
    (cut_it_short, "truncated_file"),
    (empty_it, "truncated_file"),
    (lengthen_it, "oversized_file"),
    (make_it_endless, "oversized_file"),
    (remove_it, "target_not_ready"),
    (make_it_a_folder, "target_not_ready"),
    (make_it_a_pipe, "target_not_ready"),
    (make_it_a_device, "target_not_ready"),
]


@table(
    *((named(act, SNAPSHOT_NAME), code, WHOLE) for act, code in FILE_ATTACKS),
    *((named(act, "changes"), code, ALL) for act, code in FILE_ATTACKS),
    (named(swap_it, SNAPSHOT_NAME), "swapped_file", WHOLE),
    (named(swap_it, "changes"), "oversized_file", ALL),
)
def test_a_file_that_is_not_what_was_signed_is_refused(
    site: Site, attack: Attack, code: str, victim: str
) -> None:
    refuses(site, victim, attack, code)


def test_a_file_of_the_same_length_that_is_signed_for_another_name_is_refused(site: Site) -> None:
    """(a longer one is noticed by its length already)"""
    for name in ("one", "two"):
        site.store.add_plan(name)
        site.publish()
    offered = (site.folder / "targets").glob("*.changes-*")
    shorter, longer = sorted(offered, key=lambda path: path.stat().st_size)[-2:]
    longer.write_bytes(shorter.read_bytes())
    with pytest.raises(KeystoreError) as caught:
        site.pull()
    assert caught.value.code == "swapped_file"


def put_everything_back(site: Site) -> None:
    """Roll back: a whole older state, signatures and all."""
    shutil.rmtree(site.folder)
    shutil.copytree(site.folder.with_name("first"), site.folder)


def put_only_the_timestamp_back(site: Site) -> None:
    name = "metadata/timestamp.json"
    shutil.copy(site.folder.with_name("first") / name, site.folder / name)


def test_a_state_older_than_one_seen_is_refused(site: Site) -> None:
    shutil.copytree(site.folder, site.folder.with_name("first"))
    site.store.revoke_key(site.token)
    site.publish()
    site.pull()
    shutil.copytree(site.folder, site.folder.with_name("second"))
    before = everything_of(site.replica)
    for attack in (put_everything_back, put_only_the_timestamp_back):
        attack(site)
        with pytest.raises(KeystoreError) as caught:
            site.pull()
        assert caught.value.code == "rolled_back_repository", attack
        assert everything_of(site.replica) == before
        assert not site.allows(site.token)
        shutil.rmtree(site.folder)
        shutil.copytree(site.folder.with_name("second"), site.folder)
    site.pull()


def older(pattern: str) -> Attack:
    """Put an older version of a metadata file under the newest one's name: mix and match."""

    def attack(site: Site) -> None:
        found = sorted(site.folder.glob(pattern), key=lambda path: int(path.name.split(".")[0]))
        found[-1].write_bytes(found[-2].read_bytes())

    attack.__name__ = f"put-an-older-{pattern.split('.')[-2]}"
    return attack


def write(name: str, data: bytes, what: str) -> Attack:
    def attack(site: Site) -> None:
        (site.folder / "metadata" / name).write_bytes(data)

    attack.__name__ = f"{what}-{name}"
    return attack


def change_the_announcement(site: Site) -> None:
    path = site.newest("metadata/*.targets.json")
    said = json.loads(path.read_text())
    said["signed"]["targets"][SNAPSHOT_NAME]["custom"]["up_to"] += 1
    path.write_text(json.dumps(said))


def change_the_stamp(site: Site) -> None:
    path = site.folder / "metadata/timestamp.json"
    said = json.loads(path.read_text())
    said["signed"]["x-keystore"]["up_to"] += 1
    path.write_text(json.dumps(said))


def swap_timestamp_and_snapshot(site: Site) -> None:
    data = site.newest("metadata/*.snapshot.json").read_bytes()
    (site.folder / "metadata/timestamp.json").write_bytes(data)


def serve_another_repository(site: Site) -> None:
    other = site.folder.with_name("other")
    keys = site.folder.with_name("other.keys")
    repository.create(Folder(other), keys)
    targets.sync(site.store.file, str(other), keys=keys)
    shutil.rmtree(site.folder)
    other.rename(site.folder)


def serve_a_foreign_second_root(site: Site) -> None:
    keys = site.folder.with_name("other.keys")
    root = repository.create(Folder(site.folder.with_name("other")), keys).read_bytes()
    forged = root.replace(b'"version": 1', b'"version": 2')
    (site.folder / "metadata/2.root.json").write_bytes(forged)


def sign_with_the_replaced_key(site: Site) -> None:
    stolen = site.keys.with_name("stolen.pem")
    shutil.copy(site.keys / "online.pem", stolen)
    rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=True, root=False)
    thief = repository_keys._load(stolen)
    path = site.folder / "metadata/timestamp.json"
    timestamp = Metadata[Timestamp].from_bytes(path.read_bytes())
    timestamp.signed.version += 1
    timestamp.signatures.clear()
    timestamp.sign(thief)
    path.write_bytes(timestamp.to_bytes())


def let_it_expire(site: Site) -> None:
    def a_moment_ago(_: timedelta) -> datetime:
        return datetime.now(UTC).replace(microsecond=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "expiry", a_moment_ago)
        site.publish()


def take_the_folder_away(site: Site) -> None:
    shutil.rmtree(site.folder)


def take_the_metadata_away(site: Site) -> None:
    (site.folder / "metadata/timestamp.json").unlink()


NESTED = b"[" * 8_000
"""Deeper than any JSON parser goes."""


@table(
    (older("metadata/*.snapshot.json"), "mixed_repository", ALL),
    (older("metadata/*.targets.json"), "mixed_repository", ALL),
    (change_the_announcement, "untrusted_repository", ALL),
    (change_the_stamp, "untrusted_repository", ALL),
    (swap_timestamp_and_snapshot, "untrusted_repository", ALL),
    (serve_another_repository, "foreign_root", ALL),
    (serve_a_foreign_second_root, "untrusted_repository", ALL),
    (sign_with_the_replaced_key, "revoked_key", ALL),
    (let_it_expire, "expired_repository", ALL),
    (take_the_folder_away, "target_not_ready", ALL),
    (take_the_metadata_away, "target_not_ready", ALL),
    (write("timestamp.json", b"{}", "empty"), "untrusted_repository", ALL),
    (write("timestamp.json", b"", "no"), "untrusted_repository", ALL),
    (write("timestamp.json", NESTED, "nest"), "untrusted_repository", ALL),
    (write("timestamp.json", b" " * 10_000_000, "endless"), "oversized_file", ALL),
    (write("2.root.json", b"{}", "empty"), "untrusted_repository", ALL),
    (write("2.root.json", b" " * 10_000_000, "endless"), "oversized_file", ALL),
)
def test_metadata_that_are_not_the_newest_ones_signed_are_refused(
    site: Site, attack: Attack, code: str, victim: str
) -> None:
    refuses(site, victim, attack, code)


def test_a_root_that_expired_says_what_to_do(site: Site) -> None:
    def a_moment_ago(_: timedelta) -> datetime:
        return datetime.now(UTC).replace(microsecond=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "expiry", a_moment_ago)
        rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=False, root=False)
    site.publish()
    with pytest.raises(KeystoreError, match="keystore repo renew") as caught:
        site.pull()
    assert caught.value.code == "expired_repository"
    rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=False, root=False)
    site.pull()


def test_a_stolen_online_key_gives_no_replica_more_time_than_the_root_key_allows(
    site: Site,
) -> None:
    """The repository's lifetime is signed by the root key; what an expiry says beyond it is not."""
    publisher = repository.Publisher(Folder(site.folder), site.keys)
    last, lifetime = publisher.read(), publisher.terms.lifetime_seconds
    assert last.stamp is not None
    publisher.terms = publisher.terms.model_copy(update={"lifetime_seconds": 1000 * lifetime})
    publisher.publish(last, last.stamp, last.targets, {}, sign_all=True)
    new = site.replica.with_name("new.db")
    site.replicate(new)
    with open_store(new) as file:
        info = file.info()
    assert info.valid_until is not None
    assert clock.seconds(info.valid_until) <= clock.seconds(last.stamp.as_of_at) + lifetime


def test_a_thief_who_counts_ahead_is_passed_when_the_key_is_replaced(site: Site) -> None:
    """Fast forward: with the stolen key, versions that no honest publication would reach."""
    publisher = repository.Publisher(Folder(site.folder), site.keys)
    honest = (site.folder / "metadata/timestamp.json").read_bytes()
    last = publisher.read()
    assert last.stamp is not None
    last.timestamp_version += 1_000_000
    publisher.publish(last, last.stamp, last.targets, {})
    site.pull()
    (site.folder / "metadata/timestamp.json").write_bytes(honest)
    site.store.revoke_key(site.token)
    site.publish()
    with pytest.raises(KeystoreError) as caught:
        site.pull()
    assert caught.value.code == "rolled_back_repository"
    rotation.rotate(Folder(site.folder), site.keys, root_key=None, online=True, root=False)
    site.pull()
    assert not site.allows(site.token)


# -- who has stolen the online key -------------------------------------------------------------


def forging(edit: Callable[[Forgery], object]) -> Attack:
    def attack(site: Site) -> None:
        forge(site, edit)

    attack.__name__ = edit.__name__
    return attack


def on_database(*statements: str, then: Callable[[Path], object] = lambda _: None) -> Attack:
    def edit(forgery: Forgery) -> None:
        with forgery.database() as conn:
            for statement in statements:
                conn.execute(statement)
        path = forgery.scratch / "forged.sqlite"
        then(path)
        forgery.put_snapshot(path)

    attack = forging(edit)
    attack.__name__ = (statements[0] if statements else then.__name__)[:50]
    return attack


def stamped(**changes: object) -> Attack:
    def edit(forgery: Forgery) -> None:
        forgery.stamp |= changes

    attack = forging(edit)
    attack.__name__ = f"stamp-{changes}"[:60]
    return attack


def counted(count: int) -> Attack:
    def edit(forgery: Forgery) -> None:
        forgery.stamp["counts"] = forgery.stamp["counts"] | {"Plans": count}

    attack = forging(edit)
    attack.__name__ = f"count-{count}"
    return attack


def described(**changes: object) -> Attack:
    """Change what the snapshot says of itself."""

    def edit(forgery: Forgery) -> None:
        forgery.snapshot.update(changes)

    attack = forging(edit)
    attack.__name__ = f"snapshot-{changes}"[:60]
    return attack


def segment(**changes: object) -> Attack:
    """Change what the newest segment says of itself."""

    def edit(forgery: Forgery) -> None:
        forgery.segment.unrecognized_fields["custom"].update(changes)

    attack = forging(edit)
    attack.__name__ = f"segment-{changes}"[:60]
    return attack


def called(name: str) -> Attack:
    """Give the newest segment another name."""

    def edit(forgery: Forgery) -> None:
        target = forgery.targets.pop(forgery.segment.path)
        target.path = name
        forgery.targets[name] = target
        forgery.snapshot["changes"][-1] = name

    attack = forging(edit)
    attack.__name__ = f"name-{name[:40]!r}"
    return attack


def hashed(value: str, of: str) -> Attack:
    """Sign another hash, which is part of the name that is fetched and of that written to."""

    def edit(forgery: Forgery) -> None:
        target = forgery.segment if of == "changes" else forgery.targets[SNAPSHOT_NAME]
        target.hashes = {"sha256": value}

    attack = forging(edit)
    attack.__name__ = f"hash-{value[:30]!r}-{of.partition('.')[0]}"
    return attack


def lines(*added: bytes, what: str = "", length: int | None = None) -> Attack:
    """Add lines to the newest segment."""

    def edit(forgery: Forgery) -> None:
        forgery.put_segment([*forgery.lines(), *added], length=length)

    attack = forging(edit)
    attack.__name__ = f"line-{what or added[0][:40]!r}"
    return attack


def a_header(**changes: object) -> Attack:
    def edit(forgery: Forgery) -> None:
        header, *rest = forgery.lines()
        said = json.loads(header) | changes
        forgery.put_segment([json.dumps(said).encode() + b"\n", *rest])

    attack = forging(edit)
    attack.__name__ = f"header-{next(iter(changes))}"
    return attack


def a_gap(forgery: Forgery) -> None:
    """Leave out all segments; the snapshot is older than what the stamp says."""
    for name in forgery.snapshot["changes"]:
        del forgery.targets[name]
    forgery.snapshot["changes"] = []


def a_gap_in_the_chain(forgery: Forgery) -> None:
    custom = forgery.segment.unrecognized_fields["custom"]
    custom.update(after=custom["after"] + 1)


def a_segment_that_is_not_there(forgery: Forgery) -> None:
    del forgery.targets[forgery.segment.path]


def a_segment_twice(forgery: Forgery) -> None:
    forgery.snapshot["changes"] *= 2


def no_zstd(forgery: Forgery) -> None:
    path = forgery.scratch / "none"
    path.write_bytes(b"not compressed at all")
    forgery.put(SNAPSHOT_NAME, path, forgery.snapshot)
    forgery.put(forgery.segment.path, path, forgery.segment.unrecognized_fields["custom"])


def a_window_of_two_gigabytes(forgery: Forgery) -> None:
    """One frame that asks for more memory than the machine may have."""
    path = forgery.scratch / "window"
    path.write_bytes(bytes.fromhex("28b52ffd00a8") + bytes.fromhex("010000"))
    forgery.put(SNAPSHOT_NAME, path, forgery.snapshot)
    forgery.put(forgery.segment.path, path, forgery.segment.unrecognized_fields["custom"])


def a_snapshot_bomb(forgery: Forgery) -> None:
    data = forgery.scratch / "zeros"
    with data.open("wb") as file:
        file.truncate(50_000_000)
    forgery.put_snapshot(data, length=100_000)


def a_segment_bomb(forgery: Forgery) -> None:
    forgery.put_segment([*forgery.lines(), b" " * 50_000_000], length=1000)


def more_than_any_disk_unpacked(forgery: Forgery) -> None:
    forgery.snapshot["length"] = 1 << 60


def more_than_any_disk(of: str) -> Attack:
    def edit(forgery: Forgery) -> None:
        target = forgery.segment if of == "changes" else forgery.targets[SNAPSHOT_NAME]
        target.length = 1 << 60

    attack = forging(edit)
    attack.__name__ = f"length-of-{of.partition('.')[0]}"
    return attack


PATHS = [
    "../../../evil",
    "/tmp/evil",
    "..%2f..%2fevil",
    "changes-1-2.jsonl.zst/../../evil",
    "changes-1-2.jsonl.zst\0",
    "changes-1-2.jsonl.zst\n",
    "changes-٣-٤.jsonl.zst",
    "changes-" + "1" * 5000 + "-2.jsonl.zst",
    "",
]
HASHES = ["../../../evil", "/tmp/evil", "a\0b", "0" * 5000, "", "0" * 63, "A" * 64]


@table(
    *((called(name), "unsafe_name", ALL) for name in PATHS),
    *((hashed(value, "changes"), "unsafe_name", ALL) for value in HASHES),
    *((hashed(value, SNAPSHOT_NAME), "unsafe_name", ALL) for value in HASHES),
)
def test_a_name_that_leads_elsewhere_is_refused(
    site: Site, attack: Attack, code: str, victim: str
) -> None:
    refuses(site, victim, attack, code)
    assert not list(site.folder.parent.rglob("*evil*"))
    assert not Path("/tmp/evil").exists()
    assert not Path("/tmp/evil.part").exists()


NIL = "00000000-0000-4000-8000-000000000000"
HUGE = (
    b'["Plans",[%d,"x",null,"deny",null,null,null,"2026-01-01 00:00:00","2026-01-01 00:00:00"]]\n'
)
PLAN = b'["Plans",[77,%s,null,"deny",null,null,null,"2026-01-01 00:00:00","2026-01-01 00:00:00"]]\n'


@table(
    (forging(a_snapshot_bomb), "decompression_bomb", WHOLE),
    (forging(a_segment_bomb), "decompression_bomb", EITHER),
    (forging(a_window_of_two_gigabytes), "decompression_bomb", EITHER),
    (forging(no_zstd), "incomplete_state", EITHER),
    (forging(more_than_any_disk_unpacked), "disk_full", WHOLE),
    (more_than_any_disk("changes"), "disk_full", EITHER),
    (more_than_any_disk(SNAPSHOT_NAME), "disk_full", WHOLE),
    (lines(b"x" * 70_000_000, what="endless"), "incomplete_state", EITHER),
    (lines(b"[" * 100_000 + b"\n", what="nested"), "incomplete_state", EITHER),
    (lines(b'["Plans",' + b"9" * 5000 + b"]\n", what="huge-int"), "incomplete_state", EITHER),
)
def test_what_would_fill_memory_or_disk_is_refused(
    site: Site, attack: Attack, code: str, victim: str
) -> None:
    # (at the limit of the recursion that "nested" drives to, no finalizer of other tests could run)
    gc.disable()
    try:
        refuses(site, victim, attack, code)
    finally:
        gc.enable()


@table(
    (lines(b"nonsense\n"), "incomplete_state", EITHER),
    (lines(b"{}\n"), "incomplete_state", EITHER),
    (lines(b'"Plans"\n'), "incomplete_state", EITHER),
    (lines(b"\xff\xfe\n"), "incomplete_state", EITHER),
    (lines(b'["StoreInfo",1]\n'), "incomplete_state", EITHER),
    (lines(b'["sqlite_master",1]\n'), "incomplete_state", EITHER),
    (lines(b'["Plans",1.5]\n'), "incomplete_state", EITHER),
    (lines(b'["Plans",true]\n'), "incomplete_state", EITHER),
    (lines(b'["Plans",null]\n'), "incomplete_state", EITHER),
    (lines(b'["Plans",[1,"too few"]]\n'), "incomplete_state", EITHER),
    (lines(HUGE % (1 << 63)), "incomplete_state", EITHER),
    (lines(HUGE % -1), "incomplete_state", EITHER),
    (lines(HUGE % 0), "incomplete_state", EITHER),
    (lines(PLAN % b"123456789012345678901234567890"), "incomplete_state", EITHER),
    (lines(PLAN % b"NaN"), "incomplete_state", EITHER),
    (lines(PLAN % b"Infinity"), "incomplete_state", EITHER),
    (lines(PLAN % b"{}"), "incomplete_state", EITHER),
    (lines(PLAN % b"null"), "incomplete_state", EITHER),
    (lines(PLAN % b"7"), "incomplete_state", EITHER),
    (lines(PLAN % rb'"\ud800"'), "incomplete_state", EITHER),
    (lines(PLAN % rb'"a\u0000b"'), "incomplete_state", EITHER),
    (lines(PLAN % b'"free"'), "incomplete_state", EITHER),  # a name that is taken
    (lines(PLAN % b'"one more than counted"'), "incomplete_state", EITHER),
    (lines(PLAN % b'"twice"', PLAN % b'"twice"'), "incomplete_state", EITHER),
    (lines(b'["Plans",1]\n', what="one-less-than-counted"), "incomplete_state", EITHER),
    (a_header(format=2), "incomplete_state", EITHER),
    (a_header(columns={}), "schema_version", EITHER),
    (forging(a_gap), "incomplete_state", EITHER),
    (forging(a_gap_in_the_chain), "incomplete_state", EITHER),
    (forging(a_segment_that_is_not_there), "incomplete_state", EITHER),
    (forging(a_segment_twice), "incomplete_state", EITHER),
    (segment(after=-1), "incomplete_state", EITHER),
    (segment(up_to=1 << 63), "incomplete_state", EITHER),
    (segment(after=5, up_to=4), "incomplete_state", EITHER),
    (segment(length=-1), "incomplete_state", EITHER),
    (segment(length=1 << 70), "incomplete_state", EITHER),
    (described(up_to=-1), "incomplete_state", EITHER),
    (described(up_to=1 << 63), "incomplete_state", EITHER),
    (described(schema_version=db.SCHEMA_VERSION + 1), "schema_version", EITHER),
    (described(schema_version=-1), "incomplete_state", EITHER),
    (described(changes=7), "incomplete_state", EITHER),
    (described(length="many"), "incomplete_state", EITHER),
    (described(origin_id=NIL), "foreign_origin", KNOWING),
    (described(origin_id=NIL), "incomplete_state", (FRESH,)),
    (described(origin_id="none"), "incomplete_state", EITHER),
    (described(origin_id="x\ny" * 1000), "incomplete_state", EITHER),
    (described(incarnation="x\ny" * 1000), "incomplete_state", EITHER),
    (described(token_prefix="\0"), "incomplete_state", EITHER),
    (stamped(up_to=0), "incomplete_state", EITHER),
    (stamped(up_to=-1), "incomplete_state", EITHER),
    (stamped(up_to=1 << 63), "incomplete_state", EITHER),
    (stamped(up_to=None), "incomplete_state", EITHER),
    (stamped(as_of_at="tomorrow"), "incomplete_state", EITHER),
    (stamped(as_of_at="9999-01-01 00:00:00"), "incomplete_state", EITHER),
    (stamped(counts={}), "incomplete_state", EITHER),
    (counted(-1), "incomplete_state", EITHER),
    (counted(1000), "incomplete_state", EITHER),
)
def test_signed_nonsense_is_refused(site: Site, attack: Attack, code: str, victim: str) -> None:
    refuses(site, victim, attack, code)


@pytest.mark.parametrize(
    "nonsense", [described(length=-1), described(changes=["../x"]), stamped(up_to=-1)]
)
def test_an_origin_whose_metadata_are_signed_nonsense_publishes_anew_as_the_error_says(
    site: Site, nonsense: Attack
) -> None:
    nonsense(site)
    with pytest.raises(KeystoreError) as caught:
        site.publish()
    assert "remove metadata/timestamp.json" in caught.value.hint
    assert "--reconcile" in caught.value.hint
    (site.folder / "metadata/timestamp.json").unlink()
    targets.sync(site.store.file, str(site.folder), keys=site.keys, reconcile=True)
    site.store.revoke_key(site.token)
    site.publish()
    site.pull()
    assert not site.allows(site.token)


def corrupt(path: Path) -> None:
    """Damage an inner page, not the header that is looked at first."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    for page in range(3, len(data) // size):
        data[page * size : page * size + 64] = b"\xff" * 64
    path.write_bytes(data)


def hide_a_key(site: Site) -> str:
    """Let a snapshot's index find the first key by the hash of another token; return that."""
    forged = new_token(uuid.uuid4(), "sk-miro-api-")
    hidden = hash_token(forged).encode()

    def hide(path: Path) -> None:
        conn = db.connect(path)
        (held,) = conn.execute("SELECT api_key_hash FROM APIKeys LIMIT 1").fetchone()
        (root,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_APIKeys_2'"
        ).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
        conn.close()
        data = path.read_bytes()
        page = slice((root - 1) * size, root * size)
        assert data[page].count(held.encode()) == 1
        changed = data[page].replace(held.encode(), hidden)
        path.write_bytes(data[: page.start] + changed + data[page.stop :])

    on_database("SELECT 1", then=hide)(site)
    return forged


def no_database(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@table(
    (on_database("PRAGMA application_id = 7"), "incomplete_state", WHOLE),
    (on_database(f"PRAGMA user_version = {db.SCHEMA_VERSION + 1}"), "incomplete_state", WHOLE),
    (on_database("PRAGMA user_version = 1"), "incomplete_state", WHOLE),
    (on_database("PRAGMA user_version = -1"), "incomplete_state", WHOLE),
    (on_database("CREATE TABLE Evil (a)"), "incomplete_state", WHOLE),
    (on_database("CREATE VIEW Evil AS SELECT 1"), "incomplete_state", WHOLE),
    (on_database("CREATE INDEX evil ON APIKeys (label)"), "incomplete_state", WHOLE),
    (
        on_database("CREATE VIRTUAL TABLE Evil USING fts5(a)"),
        "incomplete_state",
        WHOLE,
    ),
    (
        on_database("CREATE TRIGGER evil AFTER INSERT ON APIKeys BEGIN SELECT 1; END"),
        "incomplete_state",
        WHOLE,
    ),
    (
        on_database(
            "CREATE TRIGGER evil AFTER UPDATE ON StoreInfo BEGIN"
            " UPDATE StoreInfo SET clock_mark = '2999-01-01 00:00:00'; END"
        ),
        "incomplete_state",
        WHOLE,
    ),
    (on_database("ALTER TABLE APIKeys ADD COLUMN evil"), "incomplete_state", WHOLE),
    (
        on_database("ALTER TABLE APIKeys ADD COLUMN evil AS (1) VIRTUAL"),
        "incomplete_state",
        WHOLE,
    ),
    (on_database("ANALYZE"), "incomplete_state", WHOLE),
    (on_database("DROP TABLE Services"), "incomplete_state", WHOLE),
    (
        on_database(
            "INSERT INTO SyncTargets (target_id, url) VALUES ('x', 'postgresql://evil.example.org')"
        ),
        "incomplete_state",
        WHOLE,
    ),
    (
        on_database(
            "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('api_key', 1, 1)"
        ),
        "incomplete_state",
        WHOLE,
    ),
    (
        on_database("INSERT INTO ChangeLog (table_name, record_id, operation) VALUES (1, 1, 1)"),
        "incomplete_state",
        WHOLE,
    ),
    (
        on_database(
            "INSERT INTO Revocations (api_key, revoked_at)"
            " SELECT api_key, '2026-01-01 00:00:00' FROM APIKeys"
        ),
        "incomplete_state",
        WHOLE,
    ),
    (on_database("UPDATE StoreInfo SET role = 'origin'"), "incomplete_state", WHOLE),
    (on_database(f"UPDATE StoreInfo SET origin_id = '{'0' * 36}'"), "incomplete_state", WHOLE),
    (on_database("DELETE FROM StoreInfo"), "incomplete_state", WHOLE),
    (
        on_database(
            "INSERT INTO StoreInfo (store_info_id, store_id, role, incarnation, origin_id,"
            " token_prefix) SELECT 2, 'x', role, 'x', origin_id, 'x_' FROM StoreInfo"
        ),
        "incomplete_state",
        WHOLE,
    ),
    (on_database("DELETE FROM APIKeys"), "incomplete_state", WHOLE),
    (on_database(then=no_database), "incomplete_state", WHOLE),
    (on_database(then=nothing), "incomplete_state", WHOLE),
)
def test_a_snapshot_that_is_no_plain_state_of_the_origin_is_refused(
    site: Site, attack: Attack, code: str, victim: str
) -> None:
    refuses(site, victim, attack, code)


@pytest.mark.parametrize(
    "statements",
    [
        ("PRAGMA journal_mode = WAL",),
        ("PRAGMA encoding = 'UTF-16'",),
        ("PRAGMA auto_vacuum = FULL", "VACUUM"),
        ("PRAGMA page_size = 512", "VACUUM"),
        ("UPDATE StoreInfo SET replaying = 1, clock_mark = '2999-01-01 00:00:00'",),
        ("UPDATE StoreInfo SET log_horizon = 1 << 60, compacted_to = 1 << 60",),
        ("INSERT INTO sqlite_sequence VALUES ('UsageLog', 9223372036854775807)",),
        ("INSERT INTO sqlite_sequence VALUES ('ChangeLog', 9223372036854775807)",),
        ("INSERT INTO sqlite_sequence VALUES ('SyncTargets', 9223372036854775807)",),
        ("UPDATE sqlite_sequence SET seq = 9223372036854775807",),
        ("UPDATE sqlite_sequence SET seq = 'x', name = x'00'",),
    ],
    ids=lambda statements: statements[0][:50],
)
def test_what_a_snapshot_brings_beside_its_rows_does_no_harm(
    site: Site, statements: tuple[str, ...]
) -> None:
    new = site.replica.with_name("new.db")
    with put_back(site.folder, site.folder.with_name("as it was")) as restore:
        on_database(*statements)(site)
        site.replicate(new)
        restore()
    with open_store(new) as file:
        info = file.info()
        assert info.replaying == 0
        assert info.clock_mark is not None
        assert info.clock_mark < "2999"
        assert (info.log_horizon, info.compacted_to) == (0, 0)
        assert file.conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        file.conn.execute(
            "INSERT INTO UsageLog (principal_type, principal_id, amount) VALUES ('api_key', 1, 1)"
        )
    site.store.revoke_key(site.token)
    with Validator(new) as validator:
        assert validator.check(site.token).allowed
        for name in ("as many versions", "as the thief has signed"):
            site.store.add_plan(name)
            site.publish()
        with open_store(new) as file:
            targets.sync(file, str(site.folder))
        assert not validator.check(site.token).allowed
    everything_of(new)


def test_a_key_that_only_an_index_knows_is_denied(site: Site) -> None:
    """No comparison of rows would find it, and no later sync remove it."""
    token, new = hide_a_key(site), site.replica.with_name("new.db")
    site.replicate(new)
    with Validator(new) as validator:
        assert not validator.check(token).allowed


@pytest.mark.parametrize(
    "change",
    [
        "api_key_hash = x'00'",
        "is_active = 'yes'",
        "is_active = 7, status = x'ff'",
        "status = 'no such status'",
        "expires_at = x'ff'",
        "expires_at = 'soon'",
        "allowed_networks = 'garbage'",
        "allowed_networks = x'ff'",
        "account_id = 'x'",
        "api_key = CAST(x'ff' AS TEXT)",
    ],
)
def test_rows_that_no_origin_could_write_pass_nobody(site: Site, change: str) -> None:
    new = site.replica.with_name("new.db")
    on_database(f"UPDATE APIKeys SET {change}")(site)
    site.replicate(new)
    with Validator(new) as validator, suppress(KeystoreError):
        assert not validator.check(site.token).allowed


def test_a_damaged_snapshot_that_was_signed_passes_nobody(site: Site) -> None:
    new = site.replica.with_name("new.db")
    on_database(then=corrupt)(site)
    with suppress(KeystoreError):
        site.replicate(new)
        with Validator(new) as validator:
            assert not validator.check(site.token).allowed


@pytest.mark.parametrize(
    "endless", ["timestamp.json", "2.root.json", "snapshot.json", "targets.json", "changes-"]
)
def test_a_server_that_streams_for_ever_is_hung_up_on(site: Site, endless: str) -> None:
    with serving(site.folder) as server, open_store(site.replica) as file:
        targets.sync(file, server.url, root=site.root)
        site.store.add_plan("later")
        site.publish()
        server.endless = endless
        with pytest.raises(KeystoreError) as caught:
            targets.sync(file, server.url)
        assert caught.value.code == "oversized_file"
        assert server.sent["endless"] < 50_000_000
        server.endless = ""
        targets.sync(file, server.url)


def test_looking_for_the_reason_of_a_refusal_reads_no_endless_answer(site: Site) -> None:
    """The reply to an unsigned timestamp is another look at files that nobody has signed."""
    with serving(site.folder) as server, open_store(site.replica) as file:
        targets.sync(file, server.url, root=site.root)
        change_the_stamp(site)
        server.endless = "1.root.json"
        with pytest.raises(KeystoreError) as caught:
            targets.sync(file, server.url)
        assert caught.value.code == "oversized_file"


@pytest.mark.parametrize(
    ("name", "act"),
    [(SNAPSHOT_NAME, change_a_byte), ("changes", change_a_byte), ("changes", remove_it)],
)
def test_an_origin_that_finds_its_files_damaged_publishes_everything_anew(
    site: Site, name: str, act: Callable[[Site, Path], None]
) -> None:
    site.store.add_plan("first")
    site.publish()
    damaged = site.file_of(name)
    act(site, damaged)
    for number in range(40):  # until segments are merged, or a new snapshot is due
        site.store.add_plan(f"plan {number}")
        site.publish()
    publisher = repository.Publisher(Folder(site.folder), site.keys)
    assert f"targets/{damaged.name}" not in publisher.read().names
    site.pull()
    everything_of(site.replica)
    site.replicate(site.replica.with_name("new.db"))


def test_an_origin_publishes_a_snapshot_that_was_removed_anew(site: Site) -> None:
    site.file_of(SNAPSHOT_NAME).unlink()
    site.publish()
    site.replicate(site.replica.with_name("new.db"))


def test_a_replica_names_the_attack_on_one_line_and_exits_1(site: Site) -> None:
    from click.testing import CliRunner

    from keystore.cli import main

    site.store.add_plan("later")
    site.publish()
    change_a_byte(site, site.file_of("changes"))
    ran = CliRunner().invoke(main, ["sync", "--db", str(site.replica), "--json"])
    assert ran.exit_code == 1
    assert json.loads(ran.stderr.splitlines()[-1])["error"]["code"] == "altered_file"
