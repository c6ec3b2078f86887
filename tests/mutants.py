"""Makes mutants of a module: copies with one small mistake each. :mod:`tests.mutation` runs them.

What errors say and what annotations say is left alone: no test should hold on to words.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One mistake: ``new`` stands where ``field`` (and ``at``) of the node number ``parent`` was.

    ``owner`` is the outermost function that it is in, as ``Class.method``; empty: it works when the
    module is imported. ``name`` is the same for as long as the line is.
    """

    name: str
    owner: str
    line: int
    parent: int
    field: str
    at: int | None
    new: ast.AST


def mutants_of(source: str) -> list[Mutant]:
    """Return all mutants of a module's text, in the order of its lines."""
    tree = ast.parse(source)
    finder = _Finder(source, tree)
    finder.look_into(tree, classes="", owner="")
    return sorted(finder.found, key=lambda one: one.line)


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """Return the module with the mistake."""
    tree = ast.parse(source)
    parent = list(ast.walk(tree))[mutant.parent]
    new = copy.deepcopy(mutant.new)
    if mutant.at is None:
        setattr(parent, mutant.field, new)
    else:
        getattr(parent, mutant.field)[mutant.at] = new
    return ast.fix_missing_locations(tree)


class _Finder:
    def __init__(self, source: str, tree: ast.Module) -> None:
        self.found: list[Mutant] = []
        self._lines = source.splitlines()
        self._numbers = {node: number for number, node in enumerate(ast.walk(tree))}
        self._names: Counter[str] = Counter()

    def look_into(self, node: ast.AST, classes: str, owner: str) -> None:
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "ctx"}:
                continue
            is_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body"
            # (decorators and defaults work when the function is made)
            inner = owner or (f"{classes}{node.name}" if is_body else "")  # type: ignore[attr-defined]
            within = f"{classes}{node.name}." if isinstance(node, ast.ClassDef) else classes
            for at, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and not _is_mere_words(child):
                    for change, new in _replacements(child, node):
                        self._add(
                            node,
                            field,
                            at if isinstance(value, list) else None,
                            child,
                            change,
                            new,
                            inner,
                        )
                    if not isinstance(child, ast.Raise):
                        self.look_into(child, within, inner)

    def _add(
        self,
        parent: ast.AST,
        field: str,
        at: int | None,
        old: ast.AST,
        change: str,
        new: ast.AST,
        owner: str,
    ) -> None:
        line = getattr(old, "lineno", 0)
        ast.copy_location(new, old)
        name = f"{owner or 'module'}: {self._lines[line - 1].strip()} [{change}]"
        self._names[name] += 1
        if self._names[name] > 1:
            name += f" #{self._names[name]}"
        self.found.append(Mutant(name, owner, line, self._numbers[parent], field, at, new))


def _is_mere_words(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
            return True
        case ast.Assign([ast.Name("msg")]):
            return True
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case _:
            return False


def _replacements(node: ast.AST, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what may stand in the place of a node, each with a word for the change."""
    if isinstance(node, ast.stmt):
        yield from _other_statements(node)
    else:
        yield from _other_operations(node)
        yield from _other_values(node)
    if _is_test(node, parent) and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield "negated", ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]
    if isinstance(parent, ast.ExceptHandler) and isinstance(node, ast.Tuple):
        for at, kind in enumerate(node.elts):
            rest = [*node.elts[:at], *node.elts[at + 1 :]]
            yield f"without {ast.unparse(kind)}", ast.Tuple(rest, ast.Load())


def _other_statements(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    match node:
        case ast.Continue():
            yield "continue → break", ast.Break()
        case ast.Break():
            yield "break → continue", ast.Continue()
        case ast.Return(ast.Constant(False)):
            pass  # (to who asks, None is the same)
        case ast.Return(value) if value is not None and not _is_none(value):
            yield "return None", ast.Return(ast.Constant(None))
        case ast.Expr() | ast.Raise() | ast.AugAssign() | ast.Return() | ast.Delete():
            yield "removed", ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "removed", ast.Pass()
        case _:
            pass


def _other_operations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare():
            for at, old in enumerate(node.ops):
                new = copy.deepcopy(node)
                new.ops[at] = _COMPARE[type(old)]()
                yield f"{_sign(old)} → {_sign(new.ops[at])}", new
        case ast.BoolOp(ast.And(), values):
            yield "and → or", ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(ast.Or(), values):
            yield "or → and", ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield "no not", operand
        case ast.UnaryOp(ast.USub(), operand):
            yield "no minus", operand
        case ast.BinOp(left, old_operator, right) if type(old_operator) in _ARITHMETIC:
            operator = _ARITHMETIC[type(old_operator)]()
            yield f"{_sign(old_operator)} → {_sign(operator)}", ast.BinOp(left, operator, right)
        case _:
            pass


def _other_values(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Constant(bool() as value):
            yield f"{value} → {not value}", ast.Constant(not value)
        case ast.Constant(int() | float() as number):
            yield f"{number} → {number + 1}", ast.Constant(number + 1)
            if number > 1:
                yield f"{number} → {number - 1}", ast.Constant(number - 1)
        case ast.Set(elements):
            for at, left_out in enumerate(elements):
                rest = [*elements[:at], *elements[at + 1 :]]
                yield f"without {ast.unparse(left_out)}", ast.Set(rest)
        case ast.Call(ast.Name(name), arguments, keywords) if name in _CALLS:
            other = ast.Name(_CALLS[name], ast.Load())
            yield f"{name} → {other.id}", ast.Call(other, arguments, keywords)
        case _:
            pass


def _is_test(node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(parent, ast.comprehension):
        return node in parent.ifs
    return isinstance(parent, ast.If | ast.IfExp | ast.While) and node is parent.test


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Pow: "**",
    ast.Mod: "%", ast.BitOr: "|", ast.BitAnd: "&", ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip


def _sign(operator: ast.AST) -> str:
    return _SIGNS[type(operator)]
