"""Writes the parts of the reference that the code knows, while Sphinx reads the pages.

A line ``<!-- generated: commands -->`` in a page becomes the section of that name.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from keystore.cli import main

if TYPE_CHECKING:
    from sphinx.application import Sphinx

OPENAPI = Path(__file__).parent / "reference" / "openapi.yaml"
_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_TWO_BLANKS = re.compile(r"\n{3,}")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


# -- the command line --------------------------------------------------------------------------


def all_commands(
    group: click.Group = main, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Return what can be typed, each command with its context; a group before what is in it."""
    name = "keystore" if parent is None else group.name
    ctx = click.Context(group, parent, name, **group.context_settings)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        own = click.Context(command, info_name=name, parent=ctx)
        yield own.command_path, command, own
        if isinstance(command, click.Group):
            yield from all_commands(command, ctx)


def commands() -> str:
    """Return a list of all commands, and each one's help, options and example."""
    found = list(all_commands())
    rows = [
        (f"[`{path}`](#{path.replace(' ', '-')})", command.get_short_help_str(limit=100))
        for path, command, _ in found
    ]
    parts = [table(("command", ""), rows)]
    for path, command, ctx in found:
        pieces = command.collect_usage_pieces(ctx)
        parts += [f"## {path}", f"```text\n{' '.join([path, *pieces])}\n```"]
        parts.append(_prose(command.help or ""))
        records = [one.get_help_record(ctx) for one in command.get_params(ctx)]
        told = [record for record in records if record and record[1]]  # arguments say nothing
        rows = [(f"`{names}`", _plain(text)) for names, text in told]
        parts.append(table(("option", ""), rows))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    """Bring a command's help into Markdown; what is not to be wrapped is an example or a list."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            title, *rest = paragraph.removeprefix("\b\n").splitlines()
            shown = inspect.cleandoc("\n".join(rest if title.endswith(":") else [title, *rest]))
            said = [_plain(title)] if title.endswith(":") else []
            parts.append("\n\n".join([*said, f"```text\n{shown}\n```"]))
        else:
            parts.append(_plain(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, but for what is in backquotes."""
    pieces = text.split("`")
    escaped = [re.sub(r"([\\*<>\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[::2] = escaped
    return "`".join(pieces)


# -- HTTP --------------------------------------------------------------------------------------


def http() -> str:
    """Return the OpenAPI file as tables: what is asked, what is answered, with what in it."""
    api = yaml.safe_load(OPENAPI.read_text())
    return "\n\n".join([_asked(api), _operations(api), _answered(api), _bodies(api)])


def _asked(api: dict[str, Any]) -> str:
    schemes, parameters = (api["components"][name] for name in ("securitySchemes", "parameters"))
    rows = [
        ("`Authorization: Bearer …`", schemes["bearer"]["description"]),
        (f"`{schemes['apiKey']['name']}`", schemes["apiKey"]["description"]),
        ("`Authorization: Basic …`", schemes["basic"]["description"]),
        *(
            (f"`{one['name']}`", one["description"])
            for one in parameters.values()
            if one["in"] == "header"
        ),
    ]
    path = parameters["service"]
    return (
        f"## What a request may have\n\n{table(('header', ''), rows)}\n"
        f"`{{{path['name']}}}` in a path: {path['description']}"
    )


def _operations(api: dict[str, Any]) -> str:
    parts, everywhere = [], {}
    for tag in api["tags"]:
        parts.append(f"## {tag['name']}\n\n{tag['description']}")
        for path, methods in api["paths"].items():
            for method, operation in methods.items():
                if method == "parameters" or operation["tags"] != [tag["name"]]:
                    continue
                parts.append(f"### {method.upper()} {path}\n\n{operation['summary']}")
                parts.append(operation.get("description", ""))
                rows = []
                for status, answer in operation["responses"].items():
                    described = _resolved(api, answer)
                    row = (f"`{status}`", *_answer(answer, described))
                    if "content" in described or len(described.get("headers", ())) > 1:
                        rows.append(row)
                    else:
                        everywhere[status] = row[:2]
                parts.append(table(("status", "", "body"), rows))
    parts.append("## What any request may be answered\n\nBefore it is understood.")
    parts.append(table(("status", ""), [everywhere[status] for status in sorted(everywhere)]))
    return "\n\n".join(parts)


def _answer(answer: dict[str, Any], described: dict[str, Any]) -> tuple[str, str]:
    """Say what an answer is, with a link to its headers, and what its body is."""
    name = answer.get("$ref", "").rpartition("/")[2]
    linked = (
        f" [Headers](#{name.lower()})." if name and len(described.get("headers", ())) > 1 else ""
    )
    bodies = [_body(kind, media) for kind, media in described.get("content", {}).items()]
    return described["description"] + linked, ", ".join(bodies)


def _body(kind: str, media: dict[str, Any]) -> str:
    name = media["schema"].get("$ref", "").rpartition("/")[2]
    return f"`{kind}`" + (f": [{name}](#{name.lower()}-body)" if name else "")


def _answered(api: dict[str, Any]) -> str:
    parts = ["## Headers of answers"]
    for name, answer in api["components"]["responses"].items():
        if len(answer.get("headers", ())) < 2:
            continue
        rows = []
        for header, reference in answer["headers"].items():
            one = _resolved(api, reference)
            always = "yes" if one.get("required") else ""
            rows.append((f"`{header}`", one["description"], _values(api, one["schema"]), always))
        parts.append(f"### {name}\n\n{answer['description']}")
        parts.append(table(("header", "", "values", "always"), rows))
    return "\n\n".join(parts)


def _bodies(api: dict[str, Any]) -> str:
    parts = ["## Bodies"]
    for name, schema in api["components"]["schemas"].items():
        rows = list(_fields(api, schema, ""))
        if rows:
            parts.append(f"### {name} body\n\n" + table(("field", "", "values", "always"), rows))
    return "\n\n".join(parts)


def _fields(api: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    inherited: dict[str, Any] = {}
    required = set(schema.get("required", ()))
    for part in schema.get("allOf", ()):
        whole = _resolved(api, part)
        inherited |= whole["properties"]
        required |= set(whole["required"])
    for name, reference in (inherited | schema.get("properties", {})).items():
        one = _resolved(api, reference)
        always = "yes" if name in required else ""
        yield f"`{prefix}{name}`", one.get("description", ""), _values(api, one), always
        yield from _fields(api, one, f"{prefix}{name}.")
        inner = one.get("items", next(iter(one.get("oneOf", ())), {}))
        yield from _fields(api, inner, f"{prefix}{name}{'[]' if 'items' in one else ''}.")


def _values(api: dict[str, Any], schema: dict[str, Any]) -> str:
    schema = _resolved(api, schema)
    if "const" in schema:
        value = schema["const"]
        return (
            f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""
        )
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type") or [part["type"] for part in schema.get("oneOf", ())]
    said = [kinds] if isinstance(kinds, str) else list(kinds)
    return " or ".join(said)


def _resolved(api: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = api
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


# -- Sphinx ------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[], str]] = {"commands": commands, "http": http}


def filled(text: str) -> str:
    """Return a page with its generated sections in it.

    Raises:
        KeyError: it asks for one that there is not.
    """
    made = _MARKER.sub(lambda match: SECTIONS[match[1]](), text)
    return _TWO_BLANKS.sub("\n\n", made)


def _read(_app: "Sphinx", _name: str, source: list[str]) -> None:
    source[0] = filled(source[0])


def setup(app: "Sphinx") -> dict[str, bool]:
    """Take part in a build."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
