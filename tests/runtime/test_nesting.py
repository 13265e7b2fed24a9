"""Nothing that somebody nests without end takes a parser to the end of the stack."""

import gc
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itdesk import config
from itdesk.errors import ConfigError
from itdesk.runtime.nesting import DEEPEST, TooDeep, bounded, toml

ENDLESS = {
    "a list": "a = " + "[" * 9999,
    "a table": "a = " + "{a=" * 9999,
    "in turn": "a = " + "[{a=" * 5000,
    "after a string that ends in a quote": 'b = """a""""\na = ' + "[" * 9999 + '"',
    "after a text that ends in a quote": "b = '''a''''\na = " + "[" * 9999 + "'",
    "after a string with an escaped quote": r'b = "\"" # "' + "\na = " + "[" * 9999 + '"',
    "after a comment with a quote": "# don't\na = " + "[" * 9999 + "'",
    "a dotted key": ".".join("a" * 3000) + " = 1",
    "a header": "[" + ".".join("a" * 3000) + "]",
    "headers of lists": "\n".join(f"[[{'.'.join('a' * size)}]]" for size in range(1, 50)),
}


def _deep(frames: int, act: Callable[[], object]) -> None:
    """Call something with so many more frames on the stack."""
    act() if frames == 0 else _deep(frames - 1, act)


def _collecting(phase: str, info: dict[str, int]) -> None:
    """Need a little of the stack whenever objects are collected, as hypothesis does."""
    _deep(2, gc.isenabled)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What failed while objects were collected, which is often here, and which nobody can catch."""
    failures: list[Any] = []
    often = gc.get_threshold()
    # No function of Python's: on a stack that is used up it would fail as well.
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    gc.callbacks.append(_collecting)
    gc.set_threshold(20)
    yield failures
    gc.set_threshold(*often)
    gc.callbacks.remove(_collecting)


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_what_is_nested_without_end_is_one_clear_error_at_any_depth_of_the_stack(
    text: str, tmp_path: Any, failures: list[Any]
) -> None:
    path = tmp_path / "itdesk.toml"
    path.write_text(text)

    def load() -> None:
        with pytest.raises(ConfigError) as caught:
            config.load(config_path=path, state_dir=tmp_path, environ={})
        assert str(caught.value).splitlines() == [f"config: {path} is nested too deeply"]

    for frames in range(0, sys.getrecursionlimit() // 2, 43):
        _deep(frames, load)
    assert failures == []


def test_a_list_in_the_environment_is_no_way_around(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="is not valid JSON"):
        config.load(state_dir=tmp_path, environ={"ITDESK_SERVER__CORS_ORIGINS": "[" * 99_999})


def test_brackets_in_strings_and_comments_and_closed_ones_are_not_counted() -> None:
    many = "[{" * 99
    text = "\n".join(
        [
            f'a = "{many}\\"{many}"',
            f"b = '{many}' # {many}",
            f'c = """{many}""""" # {many}',
            f"d = '''{many}'''''",
            "e = [" + "[[]], " * 99 + "]",
        ]
    )
    assert toml(text) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("opened", "closed", "deep"),
    [("[", "]", 1), ('{"a":', "}", 1), ('{"]]":[', "]}", 2), ('["{}",', "]", 1)],
)
def test_the_bound_is_what_it_says(opened: str, closed: str, deep: int) -> None:
    def nested(times: int) -> str:
        return opened * times + "1" + closed * times

    json.loads(bounded(nested(DEEPEST // deep)))
    with pytest.raises(TooDeep):
        bounded(nested(DEEPEST // deep + 1))


_VALUES: Any = st.recursive(
    st.text(alphabet="[]{}'\"\\#\n a") | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\a'), inner),
    max_leaves=60,
)


@given(_VALUES)
def test_no_json_of_an_ordinary_depth_is_refused(value: Any) -> None:
    text = json.dumps([value, [[]] * (DEEPEST + 1)])
    assert bounded(text) == text
