"""Which text a run was trained on, and whether what its settings lead to now is still that text."""

from pathlib import Path

from tid.config import ConfigError
from tid.data import Corpus

PACKAGED = ("Speeches", "MovieReviews")  # sources of tid.data.sources whose text is a Python package's


class OtherText(ConfigError):
    """The text of a run has changed since: what would be said about the run would be of another text."""


def text_of(corpus: Corpus) -> dict:
    """Which text it is: its folder's name and the sha256 of both parts."""
    sums = {name: facts["sha256"] for name, facts in corpus.manifest["files"].items()}
    return {"text": Path(corpus.manifest["folder"]).name} | sums


def refuse_other_text(trained_on: dict, corpus: Corpus, where: Path, otherwise: str = "") -> None:
    """Raise OtherText unless `corpus` is what a run was `trained_on`, as `text_of` had it.

    where: the run's folder, or a file of it; otherwise: what the user can do instead of putting that text back.
    """
    found = text_of(corpus)
    changed = [name for name, checksum in trained_on.items() if name != "text" and found[name] != checksum]
    if changed:
        raise OtherText(
            f"{where}: this run was made with another text: {' and '.join(changed)} changed since.\n"
            f"{way_back(corpus)}{otherwise and f', or {otherwise}'}."
        )


def way_back(corpus: Corpus) -> str:
    """How to have the former text again; of one that is no file of the user's with what must have changed."""
    source, inputs = corpus.manifest["source"], corpus.manifest["inputs"]
    if source["kind"] not in PACKAGED:
        return "Put that text back"
    packages = " and ".join(f"{name} {version}" for name, version in inputs.items())
    return (
        f"tid makes it of the package {packages}: one of the two was of another version when the run was made.\n"
        f"Put that text back (install that version, and delete {corpus.manifest['folder']})"
    )
