"""Runs several workers on one port, and starts those again that die.

They are started, not forked: SQLite's locks do not survive a fork. Each has a listening socket of
its own on the port, which the supervisor keeps bound; a Unix socket is bound once and inherited.
What is left of each key's rate, and what is counted, lies in memory that all of them map. Each
worker reads a pipe from the supervisor, so that none outlives it.
"""

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

from keystore.edge.shared_rates import SIZE, anonymous_file
from keystore.errors import KeystoreError
from keystore.http import sockets, voice
from keystore.http.check import Settings
from keystore.http.counts import Counts
from keystore.http.worker import Task, memory_size

END_SECONDS = 15.0
"""How long a worker may take to finish what it has begun, and to flush its usage."""
_BACK_OFF_SECONDS = (0.1, 5.0)
"""Before a worker is started again: after its first death, and at most."""
_STABLE_SECONDS = 10.0
"""Who has served for so long starts anew with the back-off."""
_MOST_FAILED_STARTS = 5
"""So many starts in a row that never served, and the supervisor gives up."""


def run_workers(
    path: Path,
    place: sockets.Place,
    workers: int,
    *,
    on_ready: Callable[[str], None],
    settings: Settings,
    max_pending: int,
    flush_seconds: float,
) -> None:
    """Serve with so many processes until SIGINT or SIGTERM.

    ``on_ready`` gets the URL once all of them take connections. ``max_pending`` is each one's.

    Raises:
        KeystoreError: the place is taken; a worker says why it cannot serve, or dies again and
            again.
    """
    descriptor = anonymous_file(memory_size(workers))
    memory = mmap.mmap(descriptor, memory_size(workers))
    with ExitStack() as ends:
        ends.callback(os.close, descriptor)
        if place.path is not None:
            sock = ends.enter_context(sockets.bound(place))
            sock.listen(sockets.BACKLOG)
            ends.callback(sockets.remove, place.path, sockets.identity_of(place.path))
        else:
            place, sock = sockets.reserved(place)
            ends.enter_context(sock)
        inherited = sock.fileno() if place.path is not None else None
        tasks = [
            Task(
                path=os.fspath(path),
                workers=workers,
                number=number,
                memory=descriptor,
                host=place.host,
                port=place.port,
                is_public=place.is_public,
                socket=inherited,
                trusted=[str(network) for network in settings.trusted],
                query_token=settings.query_token,
                max_pending=max_pending,
                flush_seconds=flush_seconds,
            )
            for number in range(workers)
        ]
        supervisor = _Supervisor(tasks, Counts(workers, 0, memory, SIZE))
        supervisor.run(lambda: on_ready(place.url(sock)))


class _Worker:
    """A process that serves, or the time at which one is to be started in its place."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.process: subprocess.Popen[bytes] | None = None
        self.said = b""
        self.start_at = -inf
        self.started_at = -inf
        self.deaths = 0
        self.is_ready = False

    def start(self) -> None:
        task = self.task
        self.said, self.is_ready, self.started_at = b"", False, time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "keystore.http.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # so that nothing is left to be written to a worker that is dead
            pass_fds=[task.memory] + ([] if task.socket is None else [task.socket]),
        )
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # it is dead already, which its output says
                self.process.stdin.write(task.sent())

    def heard(self) -> list[KeystoreError]:
        """Take in what it has said; return its errors. The last one is why its usage is lost."""
        lines, self.said = self.said.splitlines(), b""
        told: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.is_ready = self.is_ready or any("ready" in one for one in told)
        errors = [one["error"] for one in told if "error" in one]
        return [_error(said) for said in errors]

    def last_words(self) -> list[KeystoreError]:
        """Return the errors that it had left to say when it ended."""
        if self.process is not None and self.process.stdout is not None:
            self.said += self.process.stdout.read()
        self.said = self.said[: self.said.rfind(b"\n") + 1]  # it may have been killed in a word
        return self.heard()

    def close(self) -> int:
        """Close the pipes of a process that has ended; return its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.wait()


def _error(said: dict[str, Any]) -> KeystoreError:
    # Its class is not here, its code is: that is what scripts match on.
    kind: type[KeystoreError] = type("WorkerError", (KeystoreError,), {"code": said["code"]})
    return kind(said["message"], hint=said["hint"])


class _Supervisor:
    def __init__(self, tasks: list[Task], counts: Counts) -> None:
        self._workers = [_Worker(task) for task in tasks]
        self._counts = counts
        self._selector = selectors.DefaultSelector()
        self._is_ending = self._has_told = False

    def run(self, on_ready: Callable[[], None]) -> None:
        with self._signals() as wake:
            self._selector.register(wake, selectors.EVENT_READ)
            try:
                while not self._is_ending:
                    self._start_due()
                    self._wait()
                    if not self._has_told and all(worker.is_ready for worker in self._workers):
                        self._has_told = True
                        on_ready()
            finally:
                errors = self._end()
                self._selector.close()
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and time.monotonic() >= worker.start_at:
                worker.start()
                if worker.process is not None and worker.process.stdout is not None:
                    self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

    def _wait(self) -> None:
        """Wait for a signal, a word or a death."""
        due = [worker.start_at for worker in self._workers if worker.process is None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            said = os.read(key.fd, 65536)
            worker: _Worker | None = key.data
            if worker is None:
                continue  # the signal's handler has run
            worker.said += said
            if not said:
                self._selector.unregister(key.fileobj)
                self._bury(worker)
            elif worker.said.endswith(b"\n"):
                self._hear(worker)

    def _hear(self, worker: _Worker) -> None:
        for error in worker.heard():
            if not self._has_told:
                raise error
            voice.tell(f"keystore: worker {worker.task.number}: {error}")

    def _bury(self, worker: _Worker) -> None:
        """Plan the start of a worker that has died."""
        code = worker.close()
        if self._is_ending:
            return
        if worker.is_ready and time.monotonic() - worker.started_at >= _STABLE_SECONDS:
            worker.deaths = 0
        worker.deaths += 1
        number = worker.task.number
        if worker.deaths >= _MOST_FAILED_STARTS and not worker.is_ready:
            raise KeystoreError(
                f"worker {number} ended {worker.deaths} times in a row, last with code {code}.",
                hint="Serve with --workers 1 to see why.",
            )
        first, most = _BACK_OFF_SECONDS
        delay = min(most, first * 2 ** min(worker.deaths - 1, 10))
        worker.start_at, worker.is_ready = time.monotonic() + delay, False
        self._counts.restarted(number)
        end = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        voice.tell(f"keystore: worker {number} {end}; starting it again.")

    def _end(self) -> list[KeystoreError]:
        """End all workers: each finishes what it has begun, and flushes its usage.

        Returns the errors of those that could not.
        """
        self._is_ending = True
        processes = [worker.process for worker in self._workers if worker.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + END_SECONDS
        killed = []
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                killed.append(str(process.pid))
        errors = [error for worker in self._workers for error in worker.last_words()]
        for worker in self._workers:
            worker.close()
        if killed:
            errors.append(
                KeystoreError(
                    f"worker processes that did not end were killed: {', '.join(killed)}.",
                    hint="Usage that they had not written is lost.",
                )
            )
        return errors

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Note SIGINT and SIGTERM; yields a descriptor that can be read when one has come."""
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._note) for number in numbers]
        old = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            os.close(wake)
            os.close(woken)

    def _note(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._is_ending = True
