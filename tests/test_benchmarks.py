"""The benchmarks run, and report what they promise to report. Their numbers are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
FIELDS = {"what", "against", "ratio", "low", "high", "goal", "met"}


@pytest.mark.parametrize("name", ["edge", "files", "quotas", "sidecar"])
def test_a_benchmark_prints_a_table_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert rows
    for row in rows:
        assert row.keys() == FIELDS
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["what"] in done.stdout
