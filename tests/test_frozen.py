"""Frozen values behave as the dataclasses that they are, though they share methods."""

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from itdesk.frozen import frozen


@frozen
class Ours:
    name: str
    secret: str = field(default="", repr=False)
    seen: int = field(default=0, compare=False)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Theirs:
    name: str
    secret: str = field(default="", repr=False)
    seen: int = field(default=0, compare=False)
    tags: tuple[str, ...] = ()


@frozen
class Another:
    name: str
    secret: str = ""
    seen: int = 0
    tags: tuple[str, ...] = ()


@frozen
class Nothing:
    pass


@frozen
class Hidden:
    words: str

    def __repr__(self) -> str:
        return "<hidden>"


@frozen(kw_only=True)
class Named:
    name: str


PAIRS = [
    ({"name": "a"}, {"name": "a"}),
    ({"name": "a"}, {"name": "b"}),
    ({"name": "a", "tags": ("x",)}, {"name": "a", "tags": ("y",)}),
    ({"name": "a", "secret": "x"}, {"name": "a", "secret": "y"}),
    ({"name": "a", "seen": 1}, {"name": "a", "seen": 2}),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_equal_are_those_that_equal_dataclasses_would_be(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    equal = Theirs(**one) == Theirs(**other)
    assert (Ours(**one) == Ours(**other)) is equal
    assert (Ours(**one) != Ours(**other)) is not equal
    assert len({Ours(**one), Ours(**other)}) == len({Theirs(**one), Theirs(**other)})


def test_only_values_of_one_class_are_equal() -> None:
    ours: object = Ours("a")
    assert ours != Another("a")
    assert ours != ("a", "", ())
    assert Nothing() == Nothing() and len({Nothing(), Nothing()}) == 1


def test_what_cannot_be_hashed_makes_no_key() -> None:
    unhashable: Any = ["x"]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Ours("a", tags=unhashable))


def test_it_shows_as_a_dataclass_does_without_what_shall_not_be_seen() -> None:
    shown = repr(Ours("a", secret="s3cret", tags=("x",)))
    assert shown == repr(Theirs("a", secret="s3cret", tags=("x",))).replace("Theirs", "Ours")
    assert "s3cret" not in shown
    assert repr(Nothing()) == "Nothing()"
    assert repr(Hidden("words")) == "<hidden>"


@pytest.mark.parametrize("name", ["name", "unknown"])
def test_nothing_of_it_can_be_changed(name: str) -> None:
    value: Any = Ours("a")
    with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{name}'"):
        setattr(value, name, "b")
    with pytest.raises(FrozenInstanceError, match=f"cannot delete field '{name}'"):
        delattr(value, name)
    assert value.name == "a" and not hasattr(value, "__dict__")


def test_it_is_copied_as_a_dataclass_is() -> None:
    value = Ours("a", secret="s", tags=("x",))
    assert asdict(value) == asdict(Theirs("a", secret="s", tags=("x",)))
    assert replace(value, name="b") == Ours("b", secret="s", tags=("x",))
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(TypeError):
        Named("a")  # type: ignore[call-arg]
    assert Named(name="a").name == "a"


def test_the_desk_makes_no_frozen_dataclass_another_way() -> None:
    """Each would bring five methods of its own."""
    package = Path(__file__).resolve().parents[1] / "itdesk"
    written = re.compile(r"^ *@dataclass\(frozen", re.MULTILINE)
    found = [str(path) for path in package.rglob("*.py") if written.search(path.read_text())]
    assert found == []
