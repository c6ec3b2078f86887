"""Mutation testing of the modules that decide: ``python -m tests.mutation [MODULE …]``.

Each mutant (:mod:`tests.mutants`) is given to the tests that call what is mutated, quickest first,
in a forked process: everything is imported once, and only the code of one function changes. What no
test notices has survived; ``tests/survivors.toml`` says of each why that is no hole, and the run
fails for any that is not there. Not part of ``make test``: it takes minutes. POSIX only.
"""

import argparse
import gc
import json
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings

from tests.mutants import Mutant, mutants_of, mutated

HERE = Path(__file__).parent
SURVIVORS = HERE / "survivors.toml"
TESTS: dict[str, tuple[str, ...]] = {
    "tokens": ("test_tokens",),
    "pricing": ("test_pricing",),
    "quotas": ("test_settling", "test_leases", "test_quotas"),
    "edge.decision": ("test_decision", "test_validator"),
    "edge.rates": ("test_rates",),
    "edge.guard": ("test_guard",),
    "edge.leases": ("test_leases",),
    "edge.slow": (
        *("test_slow_way", "test_fast_way", "test_hot_path", "test_validator", "test_quotas"),
        *("test_offline", "test_oauth_clients", "test_edge_faults", "test_never_stale"),
        "test_usage_loss",
    ),
    "edge.validator": (
        "test_fast_way",
        "test_hot_path::test_a_key_expires_to_the_second_on_the_fast_way",
        "test_offline::test_in_the_grace_a_check_passes_and_says_until_when",
        "test_offline::test_a_pull_is_seen_by_the_next_check_and_the_replica_goes_on",
        "test_offline::test_a_clock_that_is_set_back_makes_no_data_look_new",
        "test_offline::test_a_clock_that_is_behind_counts_as_an_age_from_the_start",
        "test_offline::test_the_mark_is_written_with_usage_and_otherwise_every_ten_minutes",
        "test_offline::test_a_mark_that_cannot_be_written_changes_no_answer_and_is_tried_again",
    ),
    "sync.replay": ("test_replay",),
    "sync.trust": (
        "test_trust",
        "test_rotation::test_the_old_online_key_counts_no_more",
        "test_files_attacks::test_metadata_that_are_not_the_newest_ones_signed_are_refused",
        "test_files_attacks::test_looking_for_the_reason_of_a_refusal_reads_no_endless_answer",
    ),
    "sync.files_source": (
        *("test_files_source", "test_files"),
        "test_replay::test_a_replica_of_signed_files_is_whole_from_the_start_and_one_of_its_own",
    ),
}
"""The tests of each module that are to notice, without those that need a server."""
SERVERS = {"postgres_url", "moto_server", "seaweedfs_server", "postgres", "moto", "seaweedfs"}
CPU_SECONDS = 30
"""A mutant that takes more never ends, nor does one that lasts ten times as long and waits."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where there is no disk to wait for."""
PASSED, FAILED, BROKEN = 0, 1, 99
QUIET = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


class Tested(NamedTuple):
    """A test: its number, what it calls of the module, how long it takes, in CPU seconds."""

    item: int
    calls: set[str]
    seconds: float


class Mutated(MetaPathFinder, Loader):
    """Imports a module with a mistake in it."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return (
            spec_from_loader(fullname, self, origin=self._path) if fullname == self._name else None
        )

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self._path
        exec(self._code, module.__dict__)  # noqa: S102 - it is our own module


def in_child(work: Callable[[], int], *, cpu_seconds: int = CPU_SECONDS) -> int:
    """Run ``work`` in a forked process without a terminal; return its exit code, minus a signal."""
    with tempfile.TemporaryDirectory(dir=MEMORY, ignore_cleanup_errors=True) as folder:
        pid = os.fork()
        if not pid:
            code = BROKEN
            try:
                os.setpgid(0, 0)
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10 * cpu_seconds)
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
                code = work()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what the tests have started
    return os.waitstatus_to_exitcode(status)


class Runner:
    """Tries mutants of one module, from inside a pytest that has collected the tests.

    So each child has everything imported and collected, and goes on with the first test.
    """

    def __init__(self, module: str, chosen: Callable[[Mutant], bool]) -> None:
        self._name = f"keystore.{module}"
        self._module = import_module(self._name)
        self._path = str(self._module.__file__)
        self._source = Path(self._path).read_text(encoding="utf-8")
        self._calls: set[str] = set()
        self.mutants = [one for one in mutants_of(self._source) if chosen(one)]
        self.survivors: list[Mutant] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [one for one in items if not _needs_a_server(one)]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.collect()
        gc.freeze()  # or each child copies what it looks at
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            out = Path(file.name)
            if in_child(partial(self._watch, session, out), cpu_seconds=3600) != PASSED:
                raise pytest.UsageError("the tests cannot be run")
            tested = [Tested(one[0], set(one[1]), one[2]) for one in json.loads(out.read_text())]
        tested.sort(key=lambda one: one.seconds)
        # Nothing is to fail for the order alone.
        in_order = [session.items[one.item] for one in tested]
        if in_child(partial(_run_all, in_order), cpu_seconds=3600) != PASSED:
            raise pytest.UsageError("the tests fail in another order")
        for mutant in self.mutants:
            numbers = [one.item for one in tested if mutant.owner in one.calls or not mutant.owner]
            items = [session.items[number] for number in numbers]
            if not items or in_child(partial(self._try, mutant, items)) == PASSED:
                self.survivors.append(mutant)
                print(f"  {mutant.line}: {mutant.name}", file=sys.stderr, flush=True)
        return True

    def _watch(self, session: pytest.Session, out: Path) -> int:
        """Run all tests on what is right; write down those that call the module."""
        tested = []
        threading.settrace(self._trace)
        for number, item in enumerate(session.items):
            self._calls, before, began = set(), session.testsfailed, time.process_time()
            sys.settrace(self._trace)
            _run(item, [*session.items, None][number + 1])
            sys.settrace(None)
            if self._calls and session.testsfailed == before:
                tested.append((number, sorted(self._calls), time.process_time() - began))
        out.write_text(json.dumps(tested))
        return PASSED

    def _trace(self, frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code.co_filename == self._path:
            self._calls.add(frame.f_code.co_qualname.partition(".<locals>")[0])

    def _try(self, mutant: Mutant, items: list[pytest.Item]) -> int:
        code = compile(mutated(self._source, mutant), self._path, "exec")
        if not mutant.owner:  # what is imported from it may be anywhere: all is imported anew
            for name in list(sys.modules):
                if name.partition(".")[0] in {"keystore", "tests"}:
                    del sys.modules[name]
            sys.meta_path.insert(0, Mutated(self._name, self._path, code))
            return int(pytest.main([*QUIET, *(one.nodeid for one in items)]))
        _function(self._module, mutant.owner).__code__ = _code(code, mutant.owner)
        return _run_all(items)


def _needs_a_server(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    parameters = {str(one) for one in call.params.values()} if call else set[str]()
    return bool(SERVERS & {*getattr(item, "fixturenames", ()), *parameters})


def _run_all(items: list[pytest.Item]) -> int:
    for item, following in zip(items, [*items[1:], None], strict=False):
        _run(item, following)
        if item.session.testsfailed:
            return FAILED
    return PASSED


def _run(item: pytest.Item, following: pytest.Item | None) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def _function(module: ModuleType, owner: str) -> FunctionType:
    found: Any = module
    for name in owner.split("."):
        found = vars(found)[name]
    while not isinstance(found, FunctionType):
        for inner in ("fget", "__func__", "__wrapped__"):
            if hasattr(found, inner):
                found = getattr(found, inner)
                break
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    assert isinstance(found, FunctionType)
    return found


def _code(code: CodeType, owner: str) -> CodeType:
    for name in owner.split("."):
        inner = [one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name]
        code = inner[-1]
    return code


def _argument(name: str) -> str:
    """Turn ``test_rates`` or ``test_rates::test_a`` into what pytest is told."""
    file, colons, test = name.partition("::")
    return f"tests/{file}.py{colons}{test}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--only", default="", help="mutants whose name matches")
    parser.add_argument("--most", type=int, help="so many mutants of each module")
    parser.add_argument("--tests", nargs="*", help="other tests, such as test_store")
    given = parser.parse_args()
    explained = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))
    # A test that fails is all that is asked for, not the smallest example.
    settings.register_profile("mutation", database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    is_whole = True
    print(
        f"{'module':20} {'mutants':>8} {'killed':>8} {'survived':>8} {'explained':>9}", flush=True
    )
    for module in given.modules or TESTS:
        runner = Runner(module, lambda one: bool(re.search(given.only, one.name)))
        runner.mutants = runner.mutants[: given.most]
        files = [_argument(name) for name in given.tests or TESTS[module]]
        with Path(os.devnull).open("w") as null, redirect_stdout(null):
            if pytest.main([*QUIET, *files], [runner]) != PASSED:
                raise SystemExit(f"the tests of {module} cannot be run")
        survivors = runner.survivors
        reasons = {
            name: group["why"] for group in explained.get(module, ()) for name in group["mutants"]
        }
        holes = [one for one in survivors if one.name not in reasons]
        known = len(survivors) - len(holes)
        killed = len(runner.mutants) - len(survivors)
        print(
            f"{module:20} {len(runner.mutants):8} {killed:8} {len(survivors):8} {known:9}",
            flush=True,
        )
        for one in holes:
            is_whole = False
            print(f"  line {one.line}: {one.name}", flush=True)
    return not is_whole


if __name__ == "__main__":
    sys.exit(main())
