"""No statement is built from anything but literals of its module (S-27), found by reading it.

A statement may put together parts that the module itself spells out: constants, choices between
constants, numbered parameters, columns of a closed list, whole numbers. Everything else has to
be a parameter. What `Literals` cannot follow is refused: then the code is too clever, not the test.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

STORE = Path(__file__).resolve().parents[2] / "itdesk" / "store"
# What takes a statement as its first argument.
SINKS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "cursor", "prepare", "add"}
SINKS |= {"copy_from_query", "copy_to_table"}
# Names that stand for a list of literals, and what puts another one in.
GROWS = {"append", "insert", "extend"}
# The migrations run files, and the schema is described by psycopg's own composition of SQL.
ELSEWHERE = {"migrator.py", "atomic_yoyo.py", "structure.py"}


class Literals:
    """Decides whether an expression of a module can only ever be text of that module."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions = {
            node.name: node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }

        self.modules = {
            alias.asname or alias.name: STORE / f"{alias.name}.py"
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "itdesk.store"
            for alias in node.names
        }

    def _there(self, module: str) -> "Literals":
        return Literals(ast.parse(self.modules[module].read_text()))

    def statements(self) -> Iterator[tuple[ast.Call, ast.AST]]:
        """Yield every call that takes a statement, with the function that it stands in."""
        for function in self.functions.values():
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in SINKS
                    and (node.func.attr != "add" or ast.unparse(node.func.value) == "where")
                    and node.args
                ):
                    yield node, function

    def is_literal(
        self, node: ast.expr, within: ast.AST, seen: frozenset[str] = frozenset()
    ) -> bool:
        """Return whether this can only be text that the module spells out."""

        def all_of(nodes: list[ast.expr]) -> bool:
            return all(self.is_literal(one, within, seen) for one in nodes)

        match node:
            case ast.Constant():
                return True
            case ast.JoinedStr(values=values):
                return all_of(values)
            case ast.FormattedValue(value=value, format_spec=spec):
                return _is_number(spec) or self.is_literal(value, within, seen)
            case ast.IfExp(body=one, orelse=other):
                return all_of([one, other])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return all_of([left, right])
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return all_of(parts)
            case ast.Dict(values=values):
                return all_of(values)
            case ast.Subscript(value=ast.Name() | ast.Attribute() as table):
                # Whatever the key is, what comes out is in the table.
                return self.is_literal(table, within, seen)
            case ast.ListComp(elt=one):
                return self.is_literal(one, within, seen)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in self.modules:
                return self._there(module).is_literal(ast.Name(id=name), ast.Module([], []))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)) if (
                module in self.modules
            ):
                # A function or class of another module of the store, judged where it is written.
                there = self._there(module)
                return there.is_literal(ast.Call(ast.Name(id=name), [], []), ast.Module([], []))
            case ast.Call(func=ast.Name(id="len")):
                return True
            case ast.Call(func=ast.Attribute(value=text, attr="join" | "format"), args=args):
                return all_of([text, *args, *(keyword.value for keyword in node.keywords)])
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                return self._gives_literal(self.functions[name], seen | {name}, name in seen)
            case ast.Call(func=ast.Name(id=name)) if name in self.classes:
                return self._collects_literals(self.classes[name])
            case ast.Name(id=name) if _is_whole(name, within):
                return True
            case ast.Name(id=name):
                return name in seen or self._is_literal_name(name, within, seen | {name})
        return False

    def _is_literal_name(self, name: str, within: ast.AST, seen: frozenset[str]) -> bool:
        if _is_checked(name, within):
            return True
        values = list(_assigned(name, within))
        if values:
            return all(self.is_literal(value, within, seen) for value in values)
        return name in self.constants and self.is_literal(self.constants[name], within, seen)

    def _gives_literal(self, function: ast.AST, seen: frozenset[str], again: bool) -> bool:
        """Return whether what a function returns is literal; of a tuple, the first."""
        if again:
            return True
        returned = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and node.value is not None
        ]
        first = [value.elts[0] if isinstance(value, ast.Tuple) else value for value in returned]
        return bool(first) and all(self.is_literal(value, function, seen) for value in first)

    def _collects_literals(self, of: ast.ClassDef) -> bool:
        """Return whether a class only lends out what its `add` was given, which is a sink too."""
        names = {node.name for node in of.body if isinstance(node, ast.FunctionDef)}
        return {"add", "__str__"} <= names


def _is_number(spec: ast.expr | None) -> bool:
    return isinstance(spec, ast.JoinedStr) and ast.unparse(spec) == "f'd'"


def _assigned(name: str, within: ast.AST) -> Iterator[ast.expr]:
    """Yield all that a name may hold: what it is set to, and what is put into it."""
    for node in ast.walk(within):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                if target == name:
                    yield value
            case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                for place, one in enumerate(targets):
                    if isinstance(one, ast.Name) and one.id == name:
                        yield from _parts(value, place)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=target), attr=attr), args=args):
                if target == name and attr in GROWS:
                    yield args[-1]
            case ast.arg(arg=argument) if argument == name:
                # A parameter may hold anything.
                yield ast.Await(value=ast.Constant(value=None))


def _parts(value: ast.expr, place: int) -> Iterator[ast.expr]:
    match value:
        case ast.Tuple(elts=parts):
            yield parts[place]
        case ast.IfExp(body=one, orelse=other):
            yield from _parts(one, place)
            yield from _parts(other, place)
        case _:
            # A function's tuple: its first member is judged, others are not text of ours.
            yield value if place == 0 else ast.Await(value=value)


def _is_whole(name: str, within: ast.AST) -> bool:
    """Return whether a name is a parameter that is a whole number, or counts through a range."""
    for node in ast.walk(within):
        match node:
            case ast.arg(arg=argument, annotation=ast.Name(id="int")) if argument == name:
                return True
            case ast.comprehension(
                target=ast.Name(id=target), iter=ast.Call(func=ast.Name(id="range"))
            ):
                if target == name:
                    return True
    return False


def _is_checked(name: str, within: ast.AST) -> bool:
    """Return whether a loop lets only members of a closed list of the module through."""
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == f"{name} not in _SETTABLE"
        and isinstance(node.body[0], ast.Raise)
        for node in ast.walk(within)
    )


def _modules() -> list[Path]:
    return [path for path in sorted(STORE.glob("*.py")) if path.name not in ELSEWHERE]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_every_statement_is_made_of_literals(path: Path) -> None:
    """S-27: nothing that came from outside is ever part of a statement."""
    literals = Literals(ast.parse(path.read_text()))
    wrong = [
        f"{path.name}:{call.lineno}: {ast.unparse(call)[:100]}"
        for call, function in literals.statements()
        if not literals.is_literal(call.args[0], function)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_statement_is_written_outside_the_store() -> None:
    """S-27: whoever wants the database asks the store; its own bookkeeping is literal too."""
    package = STORE.parent
    for path in sorted(package.rglob("*.py")):
        if path.parent == STORE or path.name == "structure.py":
            continue
        literals = Literals(ast.parse(path.read_text()))
        for call, function in literals.statements():
            assert isinstance(call.func, ast.Attribute)
            owner = ast.unparse(call.func.value)
            if owner.split(".")[-1] in ("conn", "connection", "tx", "cursor"):
                assert literals.is_literal(call.args[0], function), f"{path}:{call.lineno}"


@pytest.mark.parametrize(
    "body",
    [
        'await conn.execute(f"SELECT {q}")',
        'await conn.execute("SELECT " + q)',
        'await conn.execute("SELECT %s" % q)',
        'await conn.execute("SELECT {}".format(q))',
        'query = f"SELECT {q}"\n    await conn.fetch(query)',
        'parts = ["a"]\n    parts.append(q)\n    await conn.fetch(", ".join(parts))',
        'where = "a"\n    where += q\n    await conn.fetch(where)',
        'query = "a" if q else q\n    await conn.fetch(query)',
        'await conn.fetch(f"LIMIT {q}")',
        'await conn.fetch(f"ORDER BY {SORTS.get(q, q)}")',
        "await conn.fetch(q)",
        'for column in q:\n        await conn.fetch(f"SET {column}")',
    ],
)
def test_the_reader_sees_what_is_no_literal(body: str) -> None:
    """S-27: each way to let a value into a statement is noticed."""
    source = f'SORTS = {{"a": "b"}}\nasync def find(conn, q):\n    {body}\n'
    literals = Literals(ast.parse(source))
    [(call, function)] = literals.statements()
    assert not literals.is_literal(call.args[0], function)
