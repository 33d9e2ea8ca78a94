"""A setting that is text arrives letter for letter."""

import random

import pytest
from hydra import compose, initialize_config_dir

from tid.config import plain
from tid.verbatim import quoted

LETTERS = [*"'\"\\${},\n\t =aé[](:#%", "${", "null"]
KNOWN = ["", "a, b", "it's", 'say "so"', "${seed}", "\\", "\\'", "null", "1", " spaces ", "a=b", "[x", "x\\${y}\\"]


@pytest.fixture(scope="module")
def arrives(tmp_path_factory):
    """A function: the text that a program receives for `prompt=text` on its command line."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "main.yaml").write_text("prompt: ''\nseed: 3\n")
    with initialize_config_dir(str(folder), version_base="1.3"):
        yield lambda text: plain(compose("main", [quoted(f"prompt={text}", ("prompt",))]))["prompt"]


@pytest.mark.parametrize("text", KNOWN)
def test_known_texts_arrive(arrives, text):
    assert arrives(text) == text


def test_random_texts_arrive(arrives):
    chance = random.Random(0)
    for _ in range(150):
        text = "".join(chance.choices(LETTERS, k=chance.randint(0, 9)))
        assert arrives(text) == text


@pytest.mark.parametrize("argument", ["seed=1", "prompted=a,b", "--prompt", "prompt", "--cfg"])
def test_other_arguments_stay(argument):
    assert quoted(argument, ("prompt",)) == argument
