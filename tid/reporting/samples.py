"""What the model writes, for its page: continuations of the held-out documents' beginnings."""

from dataclasses import dataclass

import torch

from tid.data import Corpus
from tid.data.tokenizer import EOT, fast_encoding
from tid.generation import generate
from tid.load import Loaded

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Sampling:
    """As in tid.sample; count: documents that are continued, the first with `seed`, the next with seed + 1 ..."""

    count: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    seed: int


def samples(loaded: Loaded, corpus: Corpus, how: Sampling, precision: str) -> list[tuple[str, str]]:
    """(beginning, continuation) of the first held-out documents."""
    encoding = fast_encoding(corpus.tokenizer)
    device = loaded.model.norm.weight.device
    found = []
    starts = corpus.val.doc_starts[: how.count].tolist()
    ends = [*corpus.val.doc_starts[1:].tolist(), len(corpus.val.tokens)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
        prompt = corpus.val.tokens[start : min(end, start + 1 + PROMPT_TOKENS)].astype("int64")
        made = generate(
            loaded.model, torch.from_numpy(prompt), context=loaded.context, num_samples=1,
            max_new_tokens=how.max_new_tokens, temperature=how.temperature, top_k=how.top_k, top_p=None, end=EOT,
            generator=torch.Generator(device).manual_seed(how.seed + number), precision=precision,
        )  # fmt: skip
        tokens = [int(step[0]) for step in made]
        found.append(tuple(encoding.decode([t for t in part if t != EOT]) for part in (prompt.tolist(), tokens)))
    return found
