"""The hub on every PostgreSQL that is at hand, and over TLS."""

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keystore import Store, Validator
from keystore.cli import main
from keystore.db import open_store
from keystore.errors import TargetError
from keystore.sync import targets
from keystore.sync.verify import verify
from keystore.testing import postgres

OTHERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def grant(url: str, role: str, option: str, store_id: str) -> str:
    done = CliRunner().invoke(main, ["hub", "grant", url, role, option, store_id])
    assert done.exit_code == 0, done.output
    return url.replace("//keystore@", f"//{role}@")


@pytest.mark.parametrize(
    "programs",
    [
        pytest.param(None, id="wheel"),
        *(pytest.param(path, id=path.parent.name) for path in OTHERS),
        *(
            []
            if OTHERS
            else [pytest.param(None, id="none", marks=pytest.mark.skip("no other PostgreSQL here"))]
        ),
    ],
)
def test_a_hub_serves_its_roles_on_every_version(
    programs: Path | None, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    with postgres.running(programs) as server:
        with targets.hub_admin(server.url) as admin:
            admin.init()
            origin = grant(server.url, "origin", "--origin", store.info.store_id)
            edge = grant(server.url, "edge", "--replica-of", store.info.store_id)
            doomed, kept = (store.issue_key("ada@example.org") for _ in range(2))
            targets.sync(store.file, origin)
            targets.replicate(edge, path)
            with Validator(path) as validator:
                assert validator.check(kept.token, cost=3).allowed
            store.delete_key(doomed.key.api_key)
            admin.revoke(kept.token)
            targets.sync(store.file, origin)
        with open_store(path) as replica:
            (report,) = targets.sync(replica, edge)
            assert (report.usage, report.revocations) == (1, 1)
            with targets.opened(edge) as target:
                assert target.source is not None
                assert verify(replica, target.source, "").differences == []
            with pytest.raises(TargetError, match="the hub refused"):
                targets.sync(store.file, edge)
        with Validator(path) as validator:
            assert not validator.check(kept.token).allowed


# -- distributing by store_id ---------------------------------------------------------------------

UNDISTRIBUTED = {"grants", "hub_info"}


def test_every_unique_constraint_leads_with_store_id_and_no_key_is_foreign(hub_url: str) -> None:
    with psycopg.connect(hub_url) as conn:
        unique = conn.execute(
            "SELECT c.relname, a.attname FROM pg_index AS i"
            " JOIN pg_class AS c ON c.oid = i.indrelid"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
            " WHERE i.indisunique AND c.relnamespace = 'keystore'::regnamespace"
        ).fetchall()
        foreign = conn.execute(
            "SELECT conname FROM pg_constraint"
            " WHERE contype = 'f' AND connamespace = 'keystore'::regnamespace"
        ).fetchall()
    assert {column for table, column in unique if table != "hub_info"} == {"store_id"}
    assert foreign == []


def test_the_page_about_the_hub_names_every_table_to_distribute_and_drops_every_policy(
    hub_url: str,
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "hub.md").read_text()
    block = page.partition("```postgresql\n")[2].partition("```")[0]
    drop, _, distribute = block.partition("SELECT create_reference_table")
    with psycopg.connect(hub_url) as conn:
        conn.execute(drop)  # type: ignore[call-overload,unused-ignore]
        tables = conn.execute(
            "SELECT relname, relrowsecurity FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'keystore'::regnamespace"
        ).fetchall()
        policies = conn.execute("SELECT DISTINCT tablename FROM pg_policies").fetchall()
        conn.rollback()
    assert policies == [("grants",)]
    assert [name for name, is_secured in tables if is_secured] == ["grants"]
    named = {*re.findall(r"'(\w+)'", distribute), "stores"} - {"store_id"}
    assert named == {name for name, _ in tables} - UNDISTRIBUTED


# -- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> Path:
    """Make a certificate for 127.0.0.1 that is its own root, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now, address = dt.datetime.now(dt.UTC), ipaddress.ip_address("127.0.0.1")
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = path.with_suffix(".key")
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    owner = folder.stat()
    os.chown(private, owner.st_uid, owner.st_gid)
    return path


@pytest.fixture
def tls() -> Iterator[tuple[str, Path, Path]]:
    """URL of a hub on a server that speaks TLS, its root, and a root that is not its own."""
    if not OTHERS:
        pytest.skip("no PostgreSQL with TLS here: the wheel's is built without it")
    with postgres.running(OTHERS[-1]) as server:
        root, other = (certificate(server.folder, name) for name in ("server", "other"))
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM SET ssl_cert_file = '{root}'")  # type: ignore[call-overload,unused-ignore]
            conn.execute(f"ALTER SYSTEM SET ssl_key_file = '{root.with_suffix('.key')}'")  # type: ignore[call-overload,unused-ignore]
            conn.execute("ALTER SYSTEM SET ssl = on")
        server.stop()
        server.start()
        yield server.url, root, other


def test_a_sync_goes_over_tls_as_the_url_says(
    tls: tuple[str, Path, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, root, other = tls
    monkeypatch.setenv("KEYSTORE_DB", str(store.file.path))
    secret = url.replace("keystore@", "keystore:s3cret@")
    runner = CliRunner()
    trusting = f"{secret}?sslmode=verify-full&sslrootcert={root}"
    assert runner.invoke(main, ["hub", "init", trusting]).exit_code == 0
    assert runner.invoke(main, ["sync", trusting]).exit_code == 0
    assert runner.invoke(main, ["sync"]).exit_code == 0
    with targets.hub_admin(trusting) as admin:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert admin.conn.execute(query).fetchall() == [(True,)]
    for wrong in (
        f"{secret}?sslmode=verify-full&sslrootcert={other}",
        f"{secret}?sslmode=verify-full&sslrootcert={other.with_name('missing')}",
        f"{trusting.replace('127.0.0.1', 'localhost')}&hostaddr=127.0.0.1",
    ):
        done = runner.invoke(main, ["sync", wrong])
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("keystore: the hub is not the one that the URL asks for: ")
        assert "sslrootcert" in done.stderr
        assert "s3cret" not in done.stderr


def test_a_server_without_tls_is_refused_where_the_url_asks_for_it(
    hub_url: str, store: Store
) -> None:
    with pytest.raises(TargetError, match="SSL"):
        targets.sync(store.file, f"{hub_url}?sslmode=require")
