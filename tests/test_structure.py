"""The shape of the code, held by reading it: who may import whom, and how large a module may be."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Left may not import right.
LAYERS = [
    {"errors", "frozen", "language", "mailing", "model", "remote", "route"},
    {"config", "runtime"},
    {"store", "archives"},
    {"hookspecs"},
    {"desk"},
    {"actors", "api"},
    {"assembly"},
    {"daemon"},
    {"commands", "cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Data that plugins declare routes by; the handlers' side of the API stays out of their reach.
DECLARATION = "itdesk.api.route"


def _modules(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Yield what a module imports when it runs; what only the type checker reads is left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(module: str) -> str | None:
    """Return the layered part of the package that a module belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "itdesk" and len(names) > 1 and names[1] in LEVEL else None


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", list(_modules("itdesk")), ids=_name)
def test_no_module_imports_what_stands_above_it(path: Path) -> None:
    """S4-63: the layers of the package; store never imports desk, desk never imports actors."""
    own = _part(_name(path))
    if own is None:
        return
    for imported in _imports(path):
        part = _part(imported)
        if part is not None and imported != DECLARATION:
            assert LEVEL[part] <= LEVEL[own], f"{_name(path)} imports {imported}"


@pytest.mark.parametrize("path", [*_modules("itdesk/desk"), *_modules("itdesk/store")], ids=_name)
def test_the_business_knows_no_http(path: Path) -> None:
    """The desk and its store do not import aiohttp."""
    assert not [name for name in _imports(path) if name.split(".")[0] == "aiohttp"]


@pytest.mark.parametrize("path", list(_modules("plugins")), ids=_name)
def test_plugins_use_the_contract_only(path: Path) -> None:
    """A plugin of ours imports nothing that a third party's could not rely on."""
    public = (
        "itdesk.hookspecs", "itdesk.language", "itdesk.mailing", "itdesk.model", "itdesk.remote",
        "itdesk.errors", "itdesk.archives", DECLARATION,
    )  # fmt: skip
    runtime = ("itdesk.runtime.log", "itdesk.runtime.clock")
    for imported in _imports(path):
        if imported.startswith("itdesk."):
            assert imported.startswith((*public, *runtime)), imported


@pytest.mark.parametrize(
    "path", [*_modules("itdesk"), *_modules("plugins"), *_modules("migrations")], ids=_name
)
def test_a_module_says_what_it_decides_and_stays_small(path: Path) -> None:
    """A docstring for each; none above 450 lines."""
    text = path.read_text()
    assert text.count("\n") <= 450
    if path.name != "__init__.py" or text:
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_the_top_level_holds_what_it_shall_and_nothing_else() -> None:
    """The customer's list of names, besides dot-files."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    top = {name.split("/")[0] for name in listed if name and not name.startswith(".")}
    assert top <= {
        "itdesk", "plugins", "migrations", "etc", "systemd", "tests", "setup.cfg",
        "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip


def test_every_subpackage_is_in_the_wheel() -> None:
    """setup.cfg names every package, so that none is left at home."""
    named = (ROOT / "setup.cfg").read_text().split("\n")
    for folder in (ROOT / "itdesk").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"    itdesk.{folder.name}" in named


def test_every_hook_is_in_the_readme() -> None:
    """A plugin author finds each hook by its name."""
    readme = (ROOT / "README.md").read_text()
    tree = ast.parse((ROOT / "itdesk/hookspecs.py").read_text())
    hooks = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("itdesk_")
    ]
    assert hooks and [hook for hook in hooks if hook not in readme] == []
