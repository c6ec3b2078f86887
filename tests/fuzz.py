"""The parsers under a coverage-guided fuzzer: ``python -m tests.fuzz http|tokens SECONDS``.

Not part of ``make test``; ``make fuzz`` installs atheris and runs it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["keystore", "tests.fuzzing"]):
    from tests import fuzzing


def http(data: bytes) -> None:
    """The first bytes say how the others are cut."""
    count = data[0] % 8 if data else 0
    lengths, rest = data[1 : 1 + count], data[1 + count :]
    fuzzing.hold_for_http(fuzzing.cut(rest, lengths))


def tokens(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)
    key, secret = given.ConsumeIntInRange(0, 2**128 - 1), given.ConsumeIntInRange(0, 2**160 - 1)
    start, end = given.ConsumeIntInRange(0, 67), given.ConsumeIntInRange(0, 67)
    text = fuzzing.RIGHT[:start] + given.ConsumeUnicode(600) + fuzzing.RIGHT[end:]
    fuzzing.hold_for_tokens(text, key, secret)


def main(target: str, seconds: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(fuzzing.SEEDS):
            Path(folder, f"seed-{number}").write_bytes(b"\0" + seed)
        words = Path(folder).with_suffix(".dict")
        words.write_text(
            "".join(
                f'"{word}"\n'
                for word in (
                    "GET /check HTTP/1.1\\x0d\\x0a",
                    "\\x0d\\x0a\\x0d\\x0a",
                    "Content-Length: ",
                    "Transfer-Encoding: chunked",
                    "Authorization: Bearer ",
                    "X-API-Key: " + fuzzing.RIGHT,
                    fuzzing.RIGHT,
                )
            )
        )
        for name in fuzzing.LIMITS:
            module, _, attribute = name.rpartition(".")
            setattr(sys.modules[module], attribute, fuzzing.MOST)
        limits = [f"-max_total_time={seconds}", "-max_len=2048", f"-dict={words}"]
        atheris.Setup(["fuzz", folder, *limits], {"http": http, "tokens": tokens}[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
