"""Sends requests with varied tokens over many connections: by wrk, or without it by itself.

One request at a time on each connection, so no pipelining; a thousand tokens in turn.
"""

import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

CONNECTIONS = 32
WRK = shutil.which("wrk")
NAME = f"wrk -t1 -c{CONNECTIONS}" if WRK else f"ours, in Python, {CONNECTIONS} connections"

SCRIPT = """
local requests, number = {}, 0
function init(arguments)
  for token in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("GET", nil, {["X-API-Key"] = token})
  end
end
function request()
  number = number % #requests + 1
  return requests[number]
end
"""


def requests_per_second(url: str, tokens: Path, seconds: int) -> float:
    """Send requests for some seconds; ``tokens`` is a file with one in each line.

    Raises:
        RuntimeError: an answer was not 2xx, or a connection broke.
    """
    if WRK:
        script = tokens.with_suffix(".lua")
        script.write_text(SCRIPT)
        command = [WRK, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "20s"]
        command += ["-s", str(script), url, "--", str(tokens)]
    else:
        command = [sys.executable, "-m", "benchmarks.client", url, str(tokens), str(seconds)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{url}: {said}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if found is None:
        raise RuntimeError(f"{url}: {said}")
    return float(found[1])


def _send(url: str, tokens: Path, seconds: float) -> str:
    """Do what wrk does, and say it in the same words."""
    parts = urlsplit(url)
    lines = tokens.read_text(encoding="ascii").split()
    head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-API-Key: "
    requests = [f"{head}{token}\r\n\r\n".encode() for token in lines]
    sent = refused = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((parts.hostname, parts.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(requests[sent % len(requests)])
            sent += 1
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            for ready, _ in selector.select():
                connection, received = cast("socket.socket", ready.fileobj), ready.data
                part = connection.recv(65536)
                if not part:
                    return "Socket errors: closed"
                received += part
                if _is_whole(received):
                    refused += received[9:10] != b"2"
                    received.clear()
                    connection.sendall(requests[sent % len(requests)])
                    sent += 1
        rate = (sent - CONNECTIONS) / (time.monotonic() - start)
        for key in list(selector.get_map().values()):
            cast("socket.socket", key.fileobj).close()
    return f"Requests/sec: {rate}" + (f"\nNon-2xx responses: {refused}" if refused else "")


def _is_whole(received: bytearray) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


if __name__ == "__main__":
    print(_send(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
