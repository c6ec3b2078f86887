"""The runner of mutants notices what it is there to notice."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.mutants import mutants_of, mutated

PACKAGE = Path(__file__).parent.parent / "keystore"
SURVIVORS = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text(encoding="utf-8"))


def source_of(module: str) -> str:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "others"),
    [
        ("return a < b", {"return a <= b", "return None"}),
        ("return a is b and c", {"return a is not b and c", "return a is b or c", "return None"}),
        (
            "return a[2] * b",
            {"return a[3] * b", "return a[1] * b", "return a[2] // b", "return None"},
        ),
        ("return min(a, not b)", {"return max(a, not b)", "return min(a, b)", "return None"}),
        ("if a:\n        b()", {"if not a:\n        b()", "if a:\n        pass"}),
        ("a.b = True", {"a.b = False", "pass"}),
        ("raise ValueError(f'{a < b}')", {"pass"}),
    ],
)
def test_each_mutant_has_one_mistake(line: str, others: set[str]) -> None:
    frame = "def f(a, b, c):\n    {}\n".format
    found = mutants_of(frame(line))
    assert {one.owner for one in found} == {"f"}
    assert {ast.unparse(mutated(frame(line), one)) for one in found} == {
        ast.unparse(ast.parse(frame(other))) for other in others
    }


def test_what_works_at_import_belongs_to_no_function() -> None:
    source = "A = 5\nclass B:\n    c = 1\n    def d(self, e=7):\n        return [self, 8]\n"
    owners = {one.name.rpartition("[")[2]: one.owner for one in mutants_of(source)}
    assert {word for word, owner in owners.items() if not owner} == {
        "5 → 6]", "5 → 4]", "1 → 2]", "7 → 8]", "7 → 6]"
    }  # fmt: skip
    assert owners["return None]"] == "B.d"


def test_names_of_mutants_differ() -> None:
    names = [one.name for one in mutants_of(source_of("tokens"))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", sorted(SURVIVORS))
def test_each_survivor_that_is_explained_is_still_a_mutant(module: str) -> None:
    names = {one.name for one in mutants_of(source_of(module))}
    listed = [name for group in SURVIVORS[module] for name in group["mutants"]]
    assert set(listed) <= names
    assert len(listed) == len(set(listed))
    assert all(group["why"] for group in SURVIVORS[module])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.parametrize(
    ("options", "code", "row"),
    [
        # of a function, of a class or a property, and of the module
        (["--only", "return Shape"], 0, "tokens 3 3 0 0"),
        (["--only", "^module: _CHECKSUM_WIDTH = .* 7"], 0, "tokens 1 1 0 0"),
        # nobody calls it
        (["--only", "return Shape.OURS", "--tests", "test_clock"], 1, "tokens 1 0 1 0"),
    ],
)
def test_a_mutant_is_killed_by_a_test_that_fails_and_only_then(
    options: list[str], code: int, row: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "tokens", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert row in [" ".join(line.split()) for line in done.stdout.splitlines()]
