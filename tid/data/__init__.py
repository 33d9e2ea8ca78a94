"""Text and tokens: sources → text (written once) → tokenizer, tokens (made once, memory-mapped) → batches."""

from tid.data.errors import DataError
from tid.data.tokens import Corpus, TokenFile, load_corpus

__all__ = ["Corpus", "DataError", "TokenFile", "load_corpus"]
