"""The pages of reference name what the code has: commands, variables, limits, errors; no more."""

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import click
import pytest
from click.testing import CliRunner

import keystore
from keystore import Reason, Store, Validator
from keystore.cli import main
from keystore.cli.common import KeystoreGroup, json_option
from keystore.errors import KeystoreError
from keystore.http.answers import answer

DOCS = Path(__file__).parent.parent / "docs"
PAGES = DOCS / "reference"
PACKAGE = Path(keystore.__file__).parent


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their headers."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = {index - 1 for index, row in enumerate(cells) if set(row[0].strip()) == {"-"}}
    return [
        row
        for index, row in enumerate(cells)
        if index not in heads and set(row[0].strip()) != {"-"}
    ]


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """docs/generated.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the command line --------------------------------------------------------------------------


def all_commands(group: click.Group, path: str = "keystore") -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{path} {name}")


def test_the_page_has_each_command_with_its_help_options_and_example(generated: ModuleType) -> None:
    text = generated.filled(page("cli"))
    sections = dict(re.findall(r"^## (keystore .*)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE))
    found = dict(all_commands(main))
    assert sections.keys() == found.keys()
    for path, command in found.items():
        said = sections[path]
        assert f"[`{path}`](#{path.replace(' ', '-')})" in text
        assert generated._plain((command.help or "").split(".")[0].split()[0]) in said
        for option in command.params:
            for name in option.opts if isinstance(option, click.Option) else ():
                assert re.search(rf"^\| `(?:[^`]* )?{name}[ `,]", said, re.MULTILINE), (path, name)
        if not isinstance(command, click.Group):
            example = re.search(r"Example[^\n]*:\n\n```text\n((?:(?!```).*\n)*)", said)
            assert example is not None, path
            assert path in example[1]
            shown = CliRunner().invoke(main, [*path.split()[1:], "--help"]).output
            assert all(line in shown for line in example[1].splitlines())
    assert "\b" not in text


def test_each_generated_section_is_asked_for_once(generated: ModuleType) -> None:
    texts = [path.read_text() for path in DOCS.rglob("*.md")]
    for name in generated.SECTIONS:
        assert sum(text.count(f"<!-- generated: {name} -->") for text in texts) == 1
    with pytest.raises(KeyError):
        generated.filled("<!-- generated: nonsense -->")


def test_the_page_of_http_has_each_path_status_header_and_field(generated: ModuleType) -> None:
    text, api = (
        generated.filled(page("http")),
        generated.yaml.safe_load(generated.OPENAPI.read_text()),
    )
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            if method != "parameters":
                assert f"### {method.upper()} {path}\n" in text
                assert all(f"| `{status}` |" in text for status in operation["responses"])
    for answered in api["components"]["responses"].values():
        assert all(f"| `{name}` |" in text for name in answered.get("headers", ()))
    for schema in api["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            assert f"| `{name}` |" in text
            assert field.get("description", "") in text


# -- the environment ---------------------------------------------------------------------------

VARIABLE = re.compile(r"\b(?:KEYSTORE_[A-Z_]+|AWS_[A-Z_0-9]+|PG[A-Z]{4,}|SSL_CERT_[A-Z]+)\b")


def read_in(path: Path) -> set[str]:
    """Name the variables that a module reads from the environment.

    Raises:
        AssertionError: it uses the environment in a way that is not understood here.
    """
    tree = ast.parse(path.read_text())
    texts = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found, uses = set(), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
            uses += 1
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.environ.get", "os.getenv"}:
            name = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            name = node.slice
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            name, uses = node.value, uses + 1
        else:
            continue
        uses -= 1
        text = name.value if isinstance(name, ast.Constant) else texts[ast.unparse(name)]
        assert isinstance(text, str)
        found.add(text)
    assert uses == 0, f"{path} uses the environment otherwise"
    return found


def test_every_variable_that_the_code_reads_or_names_is_on_the_page() -> None:
    told = {
        name
        for row in rows(page("configuration").partition("## Files")[0])
        for name in re.findall(r"`([A-Z_0-9]+)`", row[0])
    }
    modules = sorted(PACKAGE.rglob("*.py"))
    read = set().union(*map(read_in, modules))
    assert {"KEYSTORE_DB", "AWS_ENDPOINT_URL", "KEYSTORE_TEST_POSTGRES_BIN"} <= read
    named = {name for path in modules for name in VARIABLE.findall(path.read_text())}
    assert read | named <= told
    ours = {name for name in told if name.startswith("KEYSTORE_")}
    assert ours <= read | named


# -- limits ------------------------------------------------------------------------------------

UNITS = {
    "": 1,
    "characters": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "s": 1,
    "d": 86_400,
}
LIMIT = re.compile(r"_SECONDS$|_BYTES$|^(?:MAX|MOST|LONGEST|SHORTEST)_|^CACHE_SIZE$|LIFETIME$")
INTERNAL = {
    "edge.cache.CLIENT_BYTES",
    "edge.commits.HEADER_BYTES",
    "http.counts.ROW_BYTES",
}
"""Layouts, not limits."""


def module_constants() -> dict[str, object]:
    """Return what modules call their limits, by dotted name below ``keystore``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "testing"):
            continue  # nobody is bound by these
        names = [
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        ]
        place = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in names:
            if LIMIT.search(name) and not name.startswith("_"):
                found[f"{place}.{name}"] = getattr(
                    importlib.import_module(f"keystore.{place}"), name
                )
    return {name: value for name, value in found.items() if name not in INTERNAL}


def number(value: object) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)  # type: ignore[arg-type]


def test_every_limit_is_on_the_page_with_its_value() -> None:
    told = {}
    for row in rows(page("configuration").partition("## Defaults and limits")[2]):
        amount, _, unit = row[1].partition(" ")
        if row[2:] and row[2].strip("`| "):
            told[row[2].strip("`| ")] = float(amount.replace(",", "")) * UNITS[unit]
    constants = module_constants()
    assert constants.keys() <= told.keys()
    for name, value in told.items():
        place, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(f"keystore.{place}"), attribute)
        assert number(found) == value, name


def test_the_defaults_that_have_no_name_are_those_of_the_options() -> None:
    text = page("configuration")
    found = dict(all_commands(main))
    defaults = {option.name: str(option.default) for option in found["keystore serve"].params}
    told = {
        option: row[1].partition(" ")[0].replace(",", "")
        for row in rows(text)
        for option in re.findall(r"\(`--([\w-]+)`\)", row[0])
    }
    assert float(told["max-pending"]) == float(defaults["max_pending"])
    assert float(told["flush-seconds"]) == float(defaults["flush_seconds"])
    every = {name for command in found.values() for one in command.params for name in one.opts}
    assert {f"--{option}" for option in told} <= every


# -- errors ------------------------------------------------------------------------------------


def all_errors() -> dict[str, type[KeystoreError]]:
    for module in pkgutil.walk_packages(keystore.__path__, "keystore."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type[KeystoreError]) -> Iterator[type[KeystoreError]]:
        yield kind
        for one in kind.__subclasses__():
            yield from below(one)

    ours = [kind for kind in below(KeystoreError) if kind.__module__.startswith("keystore.")]
    return {kind.__name__: kind for kind in ours if "code" in vars(kind)}


ERRORS = all_errors()


def test_the_page_has_each_error_with_its_class_and_meaning() -> None:
    found = {row[1].strip("`"): row for row in rows(page("errors"))}
    assert len(found) == len(rows(page("errors")))
    assert found.keys() == ERRORS.keys()
    for name, kind in ERRORS.items():
        code, _, meaning, remedy = (cell.strip("| ") for cell in found[name])
        assert code == f"`{kind.code}`"
        assert meaning == " ".join((kind.__doc__ or "").split()).replace("``", "`")
        assert remedy.endswith((".", "))."))


def test_each_code_is_of_one_class() -> None:
    assert len({kind.code for kind in ERRORS.values()}) == len(ERRORS)


def test_each_error_that_is_raised_says_what_to_do() -> None:
    package = Path(keystore.__file__).parent
    names = {*ERRORS, "KeystoreError"}
    calls = [
        (path, call)
        for path in package.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in names
    ]
    assert len(calls) > 200
    bare = [
        f"{path.relative_to(package)}:{call.lineno}"
        for path, call in calls
        if not any(named.arg == "hint" for named in call.keywords)
    ]
    assert bare == []


def test_each_error_is_exit_code_1_and_its_code_is_in_the_json() -> None:
    for kind in ERRORS.values():
        error = kind("What happened.", hint="What to do.")

        @click.command()
        @json_option
        def fails(error: KeystoreError = error) -> None:
            raise error

        done = CliRunner().invoke(KeystoreGroup(commands=[fails]), ["fails", "--json"])
        said = {"code": kind.code, "message": "What happened.", "hint": "What to do."}
        assert (done.exit_code, json.loads(done.stderr)) == (1, {"error": said})


def test_what_the_system_refuses_is_in_the_json_as_well(store: Store, tmp_path: Path) -> None:
    away = str(tmp_path / "away.json")
    given = ["model", "import", away, "--db", str(store.file.path)]
    done = CliRunner().invoke(main, [*given, "--json"])
    message = f"{away}: No such file or directory."
    said = {"code": KeystoreError.code, "message": message, "hint": ""}
    assert (done.exit_code, json.loads(done.stderr)) == (1, {"error": said})
    assert CliRunner().invoke(main, given).stderr == f"keystore: {message}\n"


def test_each_error_in_a_check_is_503(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Validator(store.file.path) as validator:
        for kind in ERRORS.values():
            monkeypatch.setattr(validator, "_decide", Mock(side_effect=kind("What happened.")))
            decision = validator.check("whatever")
            assert decision.reason is Reason.UNAVAILABLE
            assert answer(decision).status == 503
