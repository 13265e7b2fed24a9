"""Which route answers a path: one tree of path segments, made once from the route table.

Every segment is percent-decoded before it is compared, exactly once, and one that decodes to a
slash stays one segment: there is a single reading of a path for matching, handlers and logs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from itdesk.api.aliases import ALIASES, twins
from itdesk.api.route import Route
from itdesk.errors import MethodNotAllowed, NotFound

LONGEST_PATH = 4096
MOST_SEGMENTS = 24

Places = tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Node:
    """One segment: what may follow it, and what is served when the path ends here."""

    literals: dict[str, "Node"] = field(default_factory=dict)
    any: "Node | None" = None
    methods: dict[str, tuple[Route, Places]] = field(default_factory=dict)

    @property
    def allow(self) -> list[str]:
        """Return the methods that are served here, in a stable order."""
        return sorted({*self.methods, "OPTIONS"})


class Router:
    """Finds the route for a method and a path as sent."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = Node()
        self._fixed: dict[str, Node] = {}
        known = [(route, route.full_path) for route in routes]
        for route, path in known:
            self._add(route, path)
        for route, path in known:
            for twin in twins(route.method, path, ALIASES):
                self._add(route, twin, replace=False)

    def find(self, path: str) -> tuple[Node, Sequence[str]]:
        """Return what is served at a path, and its decoded segments; raise NotFound."""
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed, ()
        parts = _segments(path)
        node = parts and _walk(self._root, parts, 0)
        if not node or parts is None:
            raise NotFound("There is nothing at this path.")
        return node, parts

    def match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and its path parameters; raise NotFound or MethodNotAllowed."""
        node, parts = self.find(path)
        found = node.methods.get(method)
        if found is None:
            raise MethodNotAllowed(
                "This path does not take that method.", details={"allow": node.allow}
            )
        route, places = found
        return route, {name: parts[place] for name, place in places}

    def _add(self, route: Route, path: str, *, replace: bool = True) -> None:
        parts = path.split("/")[1:]
        places: list[tuple[str, int]] = []
        node = self._root
        for place, part in enumerate(parts):
            if part.startswith("{"):
                places.append((part[1:-1], place))
                node.any = node.any or Node()
                node = node.any
            else:
                node = node.literals.setdefault(part, Node())
        if not replace and route.method in node.methods:
            return
        if route.method in node.methods:
            other = node.methods[route.method][0]
            if other.method == route.method:
                raise ValueError(f"{route.method} {path} is declared by {other.id} and {route.id}")
        node.methods[route.method] = route, tuple(places)
        if route.method == "GET":
            node.methods.setdefault("HEAD", (route, tuple(places)))
        if not places:
            self._fixed[path] = self._fixed[path + "/"] = node


def _segments(path: str) -> list[str] | None:
    """Return the decoded segments of a path, or None when no route could ever match."""
    if not path.startswith("/") or len(path) > LONGEST_PATH:
        return None
    parts = path[1:-1].split("/") if path.endswith("/") else path[1:].split("/")
    if len(parts) > MOST_SEGMENTS:
        return None
    if "%" in path:
        try:
            parts = [unquote(part, errors="strict") for part in parts]
        except UnicodeDecodeError:
            return None
    for part in parts:
        # Neither control characters nor lone surrogates reach a handler or the database.
        if part in ("", ".", "..") or not part.isprintable():
            return None
    return parts


def _walk(node: Node, parts: Sequence[str], at: int) -> Node | None:
    if at == len(parts):
        return node if node.methods else None
    literal = node.literals.get(parts[at])
    if literal is not None and (found := _walk(literal, parts, at + 1)) is not None:
        return found
    return _walk(node.any, parts, at + 1) if node.any is not None else None
