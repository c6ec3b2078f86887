"""A real nginx that serves a folder, with the configuration that the docs show."""

import datetime as dt
import ipaddress
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.buckets import free_ports, running

EXAMPLE = Path(__file__).parent.parent / "examples/nginx-files.conf"
PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
_MAIN = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    log_format short '$status $request_uri $sent_http_content_encoding';
    access_log {folder}/access.log short;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_types *;
    gzip_min_length 0;
    {http}
    include {folder}/site.conf;
    server {{ listen 127.0.0.1:{moved}; return 301 http://127.0.0.1:{port}$request_uri; }}
}}
"""


class Nginx:
    """Serves ``root`` for as long as a ``with`` block of :meth:`up` lasts."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        folder.mkdir()
        self.authority = _certify(folder)
        port, secure, moved = self._ports = free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        self.secure_url = f"https://127.0.0.1:{secure}"
        self.moved_url = f"http://127.0.0.1:{moved}"
        """All that it answers is that it has moved to ``url``."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self, *, server: str = "", http: str = "") -> None:
        """Start, with more lines of configuration."""
        assert PROGRAM is not None
        port, secure, moved = self._ports
        listen = (
            f"listen 127.0.0.1:{port}; listen 127.0.0.1:{secure} ssl; "
            f"ssl_certificate {self.folder}/site.pem; ssl_certificate_key {self.folder}/site.key;"
        )
        example = EXAMPLE.read_text()
        for old, new in (
            ("listen 80;", listen + server),
            ("root /srv/keys;", f"root {self.root};"),
        ):
            assert example.count(old) == 1
            example = example.replace(old, new)
        (self.folder / "site.conf").write_text(example)
        user = "user root;" if os.geteuid() == 0 else ""  # tests' folders are for their owner only
        main = self.folder / "nginx.conf"
        text = _MAIN.format(folder=self.folder, user=user, http=http, port=port, moved=moved)
        main.write_text(text)
        command = [
            PROGRAM,
            "-p",
            str(self.folder),
            "-e",
            f"{self.folder}/error.log",
            "-c",
            str(main),
        ]
        self._stack.enter_context(running(command, f"{self.url}/", self.folder, below=600))

    def down(self) -> None:
        """Kill it."""
        self._stack.close()

    def seen(self) -> list[str]:
        """Return what was asked for: status, path, and how it was encoded."""
        return (self.folder / "access.log").read_text().splitlines()


def _certify(folder: Path) -> Path:
    """Make an authority of the test's own, and a certificate; return the authority's."""
    now = dt.datetime.now(dt.UTC)
    authority, site = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    for name, key, extension in (
        ("authority", authority, x509.BasicConstraints(ca=True, path_length=None)),
        ("site", site, x509.SubjectAlternativeName([address])),
    ):
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=name == "authority")
            .sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / f"{name}.key").write_bytes(secret)
    return folder / "authority.pem"
