"""What users install: the wheel, in an environment that has never seen the project."""

import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

PROJECT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", folder, PROJECT),
        cwd=folder,
    )
    (built,) = folder.glob("keystore-*.whl")
    return built


def locked_versions(path: Path) -> None:
    """Write the lock's versions as constraints, without the hashes that pip would insist on."""
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    names = [line.rstrip(" \\") for line in lines if "==" in line and not line.startswith(" ")]
    path.write_text("\n".join(names) + "\n")


def test_the_wheel_holds_the_sql_and_none_of_the_tests(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = (PROJECT / "keystore").rglob("*.sql")
    wanted = {path.relative_to(PROJECT).as_posix() for path in sources}
    wanted |= {"keystore/sql/schema.sql", "keystore/sql/triggers.sql", "keystore/py.typed"}
    assert wanted - names == set()
    assert {name.split("/")[0] for name in names} == {
        "keystore",
        wheel.name.split("-py3")[0] + ".dist-info",
    }


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    locked_versions(tmp_path / "constraints.txt")
    run(
        *(scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--constraint", tmp_path / "constraints.txt", wheel),
        cwd=tmp_path,
    )
    keystore = scripts / "keystore"
    run(keystore, "init", cwd=tmp_path)
    run(keystore, "plan", "add", "free", cwd=tmp_path)
    run(keystore, "account", "add", "ada@example.org", "--plan", "free", cwd=tmp_path)
    assert "free" in run(keystore, "plan", "list", cwd=tmp_path)
    assert run(keystore, "doctor", cwd=tmp_path) == "keystore.db: nothing is wrong.\n"
    # without its extras, each target says which one it needs
    for target, extra in (("postgresql://x", "postgres"), ("file:///tmp/x", "files")):
        done = subprocess.run(
            [keystore, "sync", target], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"pip install 'keystore[{extra}]'" in done.stderr
    done = subprocess.run(
        [keystore, "serve"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'keystore[server]'" in done.stderr
