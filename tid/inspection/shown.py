"""Tokens as a reader sees them: text for every token of a text, though one character may be spread over several."""

import codecs

import numpy as np

PART = "◌"  # a token that holds only a part of a character; the whole appears at its last token
LINE_END = "↵"
END_OF_TEXT = "∎"


def pieces(encoding, vocabulary: int, end: int) -> tuple[bytes, ...]:
    """Bytes of every token by id, none for the end-of-text token. encoding: a tiktoken.Encoding."""
    return tuple(encoding.decode_single_token_bytes(i) if i != end else b"" for i in range(vocabulary))


def texts(tokens: np.ndarray, by_id: tuple[bytes, ...]) -> list[str]:
    """What each token (N,) adds to the text; joined they are the text, with PART, LINE_END and END_OF_TEXT as signs."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = []
    for token in tokens.tolist():
        piece = by_id[token]
        if not piece:
            decoder.reset()
            found.append(END_OF_TEXT)
            continue
        text = decoder.decode(piece)
        if decoder.getstate()[0]:
            text += PART
        found.append(text.replace("\r", "").replace("\n", LINE_END + "\n"))
    return found


def quoted(text: str) -> str:
    """A token in a table or a hint: its spaces visible."""
    return text.replace(" ", "␣").replace("\t", "⇥").replace("\n", "") or "(nothing)"


def shades(ranks: np.ndarray, rows: np.ndarray, levels: int) -> np.ndarray:
    """Importance as 0 … levels − 1, by rank within the sequence (0: not droppable): −1 for a protected token."""
    largest = np.zeros(rows.max() + 1, np.int64)
    np.maximum.at(largest, rows, ranks)
    shade = (ranks - 1) * levels // np.maximum(largest[rows], 1)
    return np.where(ranks > 0, shade, -1)
