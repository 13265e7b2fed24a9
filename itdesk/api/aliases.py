"""Older paths that keep working, as data: each is another way to write a canonical path.

An alias has no handler of its own. The router enters it beside its canonical path when the
daemon starts, so it has the same answers, rights and metrics, and costs nothing per request.
"""

from collections.abc import Iterator, Sequence

from itdesk.frozen import frozen


@frozen
class Alias:
    """A path that stands for another; `/*` at the end of both stands for whatever follows."""

    path: str
    canonical: str
    methods: tuple[str, ...] = ()


ALIASES: tuple[Alias, ...] = (
    # A2: clients of the attachment service, which had no version in its paths.
    Alias("/tickets/{ticket}/attachments/presign", "/api/v1/tickets/{ticket}/attachments/presign"),
    Alias(
        "/tickets/{ticket}/attachments/{id}/download",
        "/api/v1/tickets/{ticket}/attachments/{id}/download",
    ),
    # A3: issues and files, as tickets and attachments were called.
    Alias("/api/v1/issues/*", "/api/v1/tickets/*"),
    Alias("/api/v1/files/upload/{ticket}", "/api/v1/tickets/{ticket}/attachments", ("POST",)),
    Alias("/api/v1/files/{id}", "/api/v1/attachments/{id}/content", ("GET",)),
    Alias("/api/v1/files/{id}", "/api/v1/attachments/{id}", ("DELETE",)),
    # A4
    Alias("/api/v1/users/me", "/api/v1/auth/me"),
    Alias("/api/v1/users/assignees", "/api/v1/assignees"),
    # A1: paths without a version.
    *(
        Alias(f"/api/{group}/*", f"/api/v1/{group}/*")
        for group in (
            "auth",
            "users",
            "tickets",
            "ai",
            "recommendations",
            "emails",
            "assignees",
            "integrations",
        )
    ),
)


def twins(method: str, path: str, aliases: Sequence[Alias] = ALIASES) -> Iterator[str]:
    """Yield every alias of a route's path, aliases of aliases included."""
    seen = {path}
    open_paths = [path]
    while open_paths:
        known = open_paths.pop()
        for alias in aliases:
            if alias.methods and method not in alias.methods:
                continue
            twin = _rewritten(known, alias)
            if twin is not None and twin not in seen:
                seen.add(twin)
                open_paths.append(twin)
                yield twin


def _rewritten(path: str, alias: Alias) -> str | None:
    """Return the alias of this path template, or None when the alias is about another."""
    pattern, parts = alias.canonical.split("/"), path.split("/")
    rest: list[str] = []
    if pattern[-1] == "*":
        pattern = pattern[:-1]
        parts, rest = parts[: len(pattern)], parts[len(pattern) :]
    if len(parts) != len(pattern):
        return None
    names: dict[str, str] = {}
    for wanted, part in zip(pattern, parts, strict=True):
        if wanted.startswith("{") and part.startswith("{"):
            names[wanted] = part
        elif wanted != part:
            return None
    return "/".join(
        [*(names.get(part, part) for part in alias.path.removesuffix("/*").split("/")), *rest]
    )
