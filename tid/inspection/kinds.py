"""What part of a word is a token? Classes that do not overlap, from the tokens' own bytes."""

import functools

import numpy as np

KINDS = ("stop word", "whole word", "first piece", "continuation", "digits", "punctuation", "space", "other")

# Function words of English: articles, pronouns, prepositions, conjunctions, auxiliaries, the usual particles.
STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "against",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "cannot",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "down",
        "during",
        "each",
        "few",
        "for",
        "from",
        "further",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "hers",
        "herself",
        "him",
        "himself",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "me",
        "more",
        "most",
        "must",
        "my",
        "myself",
        "no",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "on",
        "once",
        "only",
        "or",
        "other",
        "our",
        "ours",
        "ourselves",
        "out",
        "over",
        "own",
        "same",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "theirs",
        "them",
        "themselves",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "upon",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
        "yours",
        "yourself",
        "yourselves",
    ]
)


@functools.lru_cache(maxsize=1)
def _lexicon(pieces: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By token id: its class standing alone (index in KINDS), does it begin a word, does it go on with one?"""
    alone, opens, goes_on = (np.zeros(len(pieces), dtype) for dtype in (np.int64, bool, bool))
    for token, piece in enumerate(pieces):
        text = piece.decode("utf-8", "replace")
        bare = text.strip()
        letters = bool(bare) and bare.isalpha()
        alone[token] = KINDS.index(_alone(text, bare))
        opens[token] = letters
        goes_on[token] = letters and text[0] == bare[0]
    return alone, opens, goes_on


def _alone(text: str, bare: str) -> str:
    if not text:
        return "other"
    if not bare:
        return "space"
    if bare.isalpha():
        return "stop word" if bare.lower() in STOP_WORDS else "whole word"
    if any(c.isnumeric() for c in bare):
        return "digits"
    return "other" if "\ufffd" in bare else "punctuation"


def kinds(tokens: np.ndarray, before: np.ndarray, after: np.ndarray, pieces: tuple[bytes, ...]) -> np.ndarray:
    """Index in KINDS of each token, (N,) int64, given its neighbours (N,), −1 where there is none.

    pieces: bytes of every token by id. A word is a run of letters: "first piece" begins one of several tokens,
    "continuation" goes on with it, a stop word is a whole one. "other" are end-of-text and parts of a character.
    """
    alone, opens, goes_on = _lexicon(pieces)
    letters = opens[tokens]
    continues = goes_on[tokens] & opens[before] & (before >= 0)
    continued = goes_on[after] & (after >= 0) & letters
    found = alone[tokens]
    found = np.where(letters & continued, KINDS.index("first piece"), found)
    return np.where(continues, KINDS.index("continuation"), found)
