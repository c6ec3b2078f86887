"""What the pages name is there: tests, tables, examples, pictures.

That their examples run, `conftest.py` sees to; that their links lead somewhere, and that each page
is in the menu, `make docs`.
"""

import re
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest

from keystore.edge.decision import Reason
from keystore.http import unkey

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
PAGES = sorted([PROJECT / "README.md", *DOCS.rglob("*.md")])
FUNCTION = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.MULTILINE)
NAMED_TEST = re.compile(r"tests/(\w[\w*]*\.py)(?:::(\w+))?|`(test_\w+)`")
NOBODY_RUNS = {"bash", "sh", "shell", "shell-session", "zsh", "py", "python3", "pycon"}
NAMED_EXAMPLE = re.compile(r"(?:\$EXAMPLES|\bexamples)/([\w-]+(?:\.\w+)+)")


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


@cache
def functions_of(file: Path) -> frozenset[str]:
    return frozenset(FUNCTION.findall(file.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    files = sorted((PROJECT / "tests").glob("test_*.py"))
    everywhere = {test for file in files for test in functions_of(file)}
    for file, test, bare in NAMED_TEST.findall(page.read_text()):
        if bare:
            assert bare in everywhere, bare
            continue
        found = sorted((PROJECT / "tests").glob(file))
        assert found, file
        assert not test or test in functions_of(found[0]), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_example_that_a_page_names_exists(page: Path) -> None:
    for name in NAMED_EXAMPLE.findall(page.read_text()):
        assert (PROJECT / "examples" / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_example_is_in_a_language_that_nobody_runs(page: Path) -> None:
    """A block of `bash` or `py` would be told and never tried; `console` and `python` are."""
    fences = re.findall(r"^ *```+(\S*)", page.read_text(), re.MULTILINE)
    assert set(fences) & NOBODY_RUNS == set()


def test_each_guarantee_is_linked_to_a_test() -> None:
    """The seven sections, and each item of the list below them."""
    sections = (DOCS / "guarantees.md").read_text().split("\n## ")[1:]
    *seven, besides = sections
    assert [section.split(".")[0] for section in seven] == [str(number) for number in range(1, 8)]
    others = besides.split("\n- ")[1:]
    assert others
    for promise in [*seven, *others]:
        assert NAMED_TEST.search(promise), promise[:80]


@pytest.mark.parametrize(
    ("page", "schema"),
    [
        ("schema.md", PROJECT / "schema.sql"),
        ("reference/hub-schema.md", PROJECT / "keystore/sql/hub_schema.sql"),
    ],
)
def test_every_table_of_a_schema_is_on_its_page(page: str, schema: Path) -> None:
    made = set(re.findall(r"^CREATE TABLE (?:keystore\.)?(\w+)", schema.read_text(), re.MULTILINE))
    text = (DOCS / page).read_text()
    assert made
    assert {table for table in made if not re.search(rf"(?m)^[|`].*\b{table}\b", text)} == set()


def test_the_schema_page_says_why_of_every_table() -> None:
    made = set(
        re.findall(r"^CREATE TABLE (\w+)", (PROJECT / "schema.sql").read_text(), re.MULTILINE)
    )
    _, _, rest = (DOCS / "schema.md").read_text().partition("## Why each table is there")
    rows = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")][2:]
    told = {table for row in rows for table in row.split("|")[1].replace(",", " ").split()}
    assert told == made


def test_every_reason_is_on_the_page_of_checks_over_http_with_its_code_for_unkeys_clients() -> None:
    text = (DOCS / "http.md").read_text()
    assert {reason for reason in Reason if f"`{reason}`" not in text} == set()
    for reason, code in unkey._CODES.items():
        assert re.search(rf"\| `{code}` \| .*`{reason}`", text), (code, reason)


def test_every_picture_can_be_read_aloud_and_in_the_dark() -> None:
    """Pictures stand in the page: its own text colour, a title and a description, unique ids."""
    pictures = sorted((DOCS / "pictures").glob("*.svg"))
    assert pictures
    seen: set[str] = set()
    for picture in pictures:
        root = ET.parse(picture).getroot()  # noqa: S314 - our own file
        ids = {node.get("id", "") for node in root.iter()} - {""}
        assert root.get("role") == "img"
        assert set(root.get("aria-labelledby", "").split()) <= ids
        for part in ("title", "desc"):
            node = root.find(f"{{http://www.w3.org/2000/svg}}{part}")
            assert node is not None
            assert (node.text or "").strip()
        colours = {node.get(name) for node in root.iter() for name in ("fill", "stroke")}
        assert colours <= {None, "none", "currentColor"}, picture.name
        assert not ids & seen
        seen |= ids
