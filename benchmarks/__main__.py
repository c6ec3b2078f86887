"""Runs every benchmark there is, one after the other, and draws one report of them.

Each is a process of its own: what one leaves in memory does not slow the next, and one that fails
takes no other with it. What a folder holds already is not measured again, so a run that was
interrupted goes on with ``--into`` the same folder.
"""

import argparse
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report, results
from benchmarks.results import Result

_SAID = 2000
"""Characters of what a failed benchmark has said at the end."""


def run(folder: Path, chosen: list[str], *, quick: bool) -> list[str]:
    """Measure into a folder; return those that failed.

    Chosen ones are measured even if the folder holds them. A failure replaces no result.
    """
    failed = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in chosen or results.names():
            if not chosen and _is_there(folder, name, quick=quick):
                print(f"== {name}: {folder} has it already", flush=True)
                continue
            print(f"== {name}", flush=True)
            error = _measure(folder, name, quick=quick)
            if error is not None:
                failed.append(name)
                print(error, file=sys.stderr, flush=True)
                if not _is_there(folder, name, quick=quick):
                    results.keep(folder, Result(name, quick, error=error))
    finally:
        report.write(folder)
    return failed


def _is_there(folder: Path, name: str, *, quick: bool) -> bool:
    found = results.load(folder, name)
    return found is not None and found.error is None and found.quick == quick


def _measure(folder: Path, name: str, *, quick: bool) -> str | None:
    """Run one benchmark; return what it said at the end if it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--into", str(folder)]
    with subprocess.Popen(
        [*command, *(["--quick"] if quick else [])], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.communicate()[1]
        except BaseException:
            process.send_signal(signal.SIGTERM)  # it puts its servers and folders away
            raise
    if process.returncode == 0:
        return None
    return said[-_SAID:] or f"it ended with code {process.returncode}"


def main() -> int:
    """Run the benchmarks as a command; the exit code is 1 if one failed, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run benchmarks, and draw one report of them."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"measure just these: {', '.join(results.names())}"
    )
    parser.add_argument("--quick", action="store_true", help="less data, half a minute each")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="the run's folder; one that is there goes on"
    )
    options = parser.parse_args()
    if unknown := set(options.names).difference(results.names()):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    now = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    folder: Path = options.into or Path("bench") / now
    # A terminated run ends as an interrupted one does, with the report of what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = run(folder, options.names, quick=options.quick)
    except KeyboardInterrupt:
        print(f"\nInterrupted; --into {folder} goes on.", file=sys.stderr)
        return 130
    found = results.load_all(folder)
    print(f"\n{report.where(found)}\n\n{report.missed(found)}\n\nThe report is in {folder}.")
    for name in failed:
        print(f"{name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
