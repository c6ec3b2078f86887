"""Forks: a child answers nothing from its parent's files, and does them no harm.

Each test is a program of its own, because the process that runs the tests has threads.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from keystore import Store

START = """
import gc, multiprocessing, os, sys, threading
from pathlib import Path
from keystore import Store, Validator
from keystore.errors import ForkedError

path, token = Path(sys.argv[1]), sys.argv[2]

def in_child(function):
    # Returns once the child is over; what it raises is an exit status of 1.
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def refuses(function):
    try:
        function()
    except ForkedError as error:
        assert error.hint and str(path) in str(error), error
    else:
        raise AssertionError("not refused")
"""


def run(store: Store, program: str) -> int:
    """Run a program on a store that nobody else has open; return the usage in it then."""
    token = store.issue_key("ada@example.org").token
    path = store.file.path
    store.close()
    arguments = [sys.executable, "-c", START + program, str(path), token]
    assert subprocess.run(arguments, check=False).returncode == 0
    with Store.open(path) as after:
        return after.status().usage_total


@pytest.mark.parametrize("max_pending", [1, 10_000])
def test_a_child_is_refused_and_the_parents_usage_counts_once(
    store: Store, max_pending: int
) -> None:
    program = f"""
validator = Validator(path, max_pending={max_pending})
assert validator.check(token).allowed and validator.check(token).allowed

def child():
    refuses(lambda: validator.check(token))
    refuses(lambda: validator.check(token, cost=0))
    refuses(lambda: validator.check("unknown"))
    assert validator.pending == 0
    validator.close()

for _ in range(3):
    in_child(child)
    assert validator.check(token).allowed
validator.close()
"""
    assert run(store, program) == 5


def test_nothing_that_is_asked_in_a_child_touches_an_inherited_connection(store: Store) -> None:
    program = """
validator = Validator(path)
keeper = Store.open(path)
assert validator.check(token).allowed

def child():
    used = []
    for file in (validator._file, validator._writer, keeper.file):
        file.conn.set_trace_callback(used.append)
    refuses(validator.freshness)
    refuses(keeper.keys)
    refuses(keeper.status)
    refuses(lambda: keeper.add_plan("other"))
    refuses(lambda: keeper.revoke_key(token))
    assert validator.flush() == validator.flush_if_due() == 0
    assert used == []

in_child(child)
assert len(keeper.keys()) == 1
keeper.close()
validator.close()
"""
    assert run(store, program) == 1


def test_a_child_of_multiprocessing_is_refused(store: Store) -> None:
    program = """
validator = Validator(path)
assert validator.check(token).allowed
context = multiprocessing.get_context("fork")
for _ in range(2):
    process = context.Process(target=refuses, args=(lambda: validator.check(token),))
    process.start()
    process.join()
    assert process.exitcode == 0
assert validator.check(token).allowed
validator.close()
"""
    assert run(store, program) == 2


def test_a_child_of_a_child_is_refused_as_well(store: Store) -> None:
    program = """
validator = Validator(path)
in_child(lambda: in_child(lambda: refuses(lambda: validator.check(token))))
in_child(lambda: in_child(lambda: refuses(lambda: Validator(path))))
validator.close()
"""
    assert run(store, program) == 0


def test_a_file_that_the_parent_had_open_cannot_be_opened_in_the_child(store: Store) -> None:
    program = """
by_another_name = path.with_name("link.db")
by_another_name.symlink_to(path)
validator = Validator(path)

def child():
    refuses(lambda: Validator(path))
    refuses(lambda: Store.open(path))
    try:
        Validator(by_another_name)
    except ForkedError:
        pass
    else:
        raise AssertionError("not refused by another name")

in_child(child)
validator.close()
"""
    assert run(store, program) == 0


def test_a_file_that_was_not_open_works_in_the_child(store: Store) -> None:
    program = """
def child():
    with Validator(path) as validator:
        assert validator.check(token).allowed

in_child(child)
with Validator(path) as validator:  # open once, and closed before the fork
    assert validator.check(token).allowed
in_child(child)
"""
    assert run(store, program) == 3


def test_many_children_with_a_validator_each_count_every_check(store: Store) -> None:
    program = """
def child():
    with Validator(path, max_pending=7) as validator:
        for _ in range(100):
            assert validator.check(token).allowed

children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(4)]
for each in children:
    each.start()
for each in children:
    each.join()
    assert each.exitcode == 0
"""
    assert run(store, program) == 400


def test_what_a_child_closes_or_forgets_leaves_the_parents_locks_and_wal(store: Store) -> None:
    program = """
import subprocess
validator = Validator(path)
keeper = Store.open(path)
assert validator.check(token).allowed

def child():
    validator.close()
    keeper.close()
    for name in ("validator", "keeper"):
        del globals()[name]
    gc.collect()

in_child(child)
assert Path(f"{path}-wal").exists() and Path(f"{path}-shm").exists()

# The parent's write lock still keeps another process out, after a child has ended.
other = (
    "import sqlite3, sys\\n"
    "conn = sqlite3.connect(sys.argv[1], timeout=0)\\n"
    "try: conn.execute('BEGIN IMMEDIATE')\\n"
    "except sqlite3.OperationalError as error: sys.exit('locked' not in str(error))\\n"
    "sys.exit(2)\\n"
)
with keeper.file.write():
    in_child(child)
    done = subprocess.run([sys.executable, "-c", other, str(path)])
    assert done.returncode == 0, done
assert validator.check(token).allowed
validator.close()
keeper.close()
"""
    assert run(store, program) == 2


def test_a_fork_in_the_middle_of_a_check_of_another_thread_hangs_nobody(store: Store) -> None:
    program = """
validator = Validator(path, max_pending=3)
stop = threading.Event()
counted = 0

def work():
    global counted
    while not stop.is_set():
        assert validator.check(token).allowed
        counted += 1

thread = threading.Thread(target=work)
thread.start()
for _ in range(30):
    in_child(lambda: refuses(lambda: validator.check(token)))
stop.set()
thread.join()
validator.close()
with Store.open(path) as store:
    assert store.status().usage_total == counted, (store.status().usage_total, counted)
"""
    assert run(store, program) > 0


def test_a_child_that_is_killed_or_leaves_as_usual_loses_none_of_the_parents_usage(
    store: Store,
) -> None:
    program = """
validator = Validator(path, max_seconds=3600)
assert all(validator.check(token).allowed for _ in range(10))
child = os.fork()
if not child:
    sys.exit(0)  # with all the finalizers, unlike os._exit()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert validator.pending == 10
validator.close()
"""
    assert run(store, program) == 10


def test_a_program_that_is_started_by_fork_and_exec_may_open_the_file(store: Store) -> None:
    program = """
import subprocess
validator = Validator(path)
code = "import sys; from keystore import Validator; Validator(sys.argv[1]).close()"
subprocess.run([sys.executable, "-c", code, str(path)], check=True)
validator.close()
"""
    assert run(store, program) == 0


def test_a_store_that_is_made_after_the_fork_is_the_childs_own(
    store: Store, tmp_path: Path
) -> None:
    program = """
validator = Validator(path)

def child():
    with Store.create(path.with_name("other.db")) as other:
        other.add_plan("free")
        other.add_account("ada@example.org", plan="free")
        mine = other.issue_key("ada@example.org").token
    with Validator(path.with_name("other.db")) as own:
        assert own.check(mine).allowed

in_child(child)
validator.close()
"""
    assert run(store, program) == 0
