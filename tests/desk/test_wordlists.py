"""Word lists as operators may change them."""

import shutil
from pathlib import Path

import pytest

from itdesk.desk.listening import hear
from itdesk.desk.wordlists import Wordlists
from itdesk.errors import ConfigError
from itdesk.model import Category, Priority

SHIPPED = Path(__file__).resolve().parents[2] / "etc/assist"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of what is shipped, to be changed."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "assist"))


def change(path: Path, old: str, new: str) -> None:
    """Replace something in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_another_language_is_another_file(own: Path) -> None:
    change(own / "en.toml", '"vpn"', '"tunnel"')
    shutil.copy(own / "de.toml", own / "fr.toml")
    change(own / "fr.toml", '"netzwerk"', '"réseau"')
    words = Wordlists(own)
    assert words.classify("Le réseau").category is Category.NETWORK
    assert words.classify("tunnel").category is Category.NETWORK
    assert hear(words, ["hi"], "fr").language is words.languages["fr"]
    assert hear(words, ["hi"], "xx").language is words.languages["en"]


def test_the_order_and_what_a_class_means_can_be_changed(own: Path) -> None:
    text = (own / "classes.toml").read_text()
    head, *rest = text.split("[[classes]]")
    last, otherwise = rest[-1].split("# What a ticket")
    rest[-1] = last
    changed = "[[classes]]".join([head, *rest[::-1]]) + "\n# What a ticket" + otherwise
    (own / "classes.toml").write_text(changed.replace('"critical"', '"low"'))
    words = Wordlists(own)
    assert words.classify("phishing by email: error").category is Category.APPLICATION
    assert words.classify("phishing").priority is Priority.LOW


WRONG = {
    "no toml": ("en.toml", "[classes.security]", "[classes.security", "en.toml: "),
    "no word": ("en.toml", '"phishing",', '"...",', "has no word in it"),
    "a class that is none": ("de.toml", "[classes.email]", "[classes.post]", "email, post"),
    "a sentence too few": ("de.toml", "recommendations = [", "recommendation = [", "de.toml"),
    "a value that is none": ("de.toml", "$key ist", "$number ist", "shown has a $"),
    "no priority": ("classes.toml", '"critical"', '"urgent"', "classes.toml: classes.0.priority"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named(own: Path, name: str) -> None:
    file, old, new, said = WRONG[name]
    change(own / file, old, new)
    with pytest.raises(ConfigError) as refused:
        Wordlists(own)
    assert "ai.words_dir: " in refused.value.message and said in refused.value.message


def test_a_directory_without_lists_is_refused(tmp_path: Path) -> None:
    for place, said in ((tmp_path, "holds no word list"), (tmp_path / "x", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            Wordlists(place)
