"""Text from a trained model: ``python -m tid.sample checkpoint=outputs/<name>/<run> prompt="The people, and"``.

Only the text goes to stdout. The prompt follows an end-of-text token, as every document of the training text does.
"""

import os
import sys
from functools import partial
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict, Field

from tid import cli, config
from tid.verbatim import verbatim


class SampleConfig(BaseModel):
    """Schema of conf/sample.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    checkpoint: config.Folder
    prompt: str
    num_samples: config.Count
    max_new_tokens: config.Count
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    top_k: config.Count | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    seed: config.Index
    device: Literal["auto", "cuda", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    tokenizer_dir: config.Folder


check = partial(config.check, schema=SampleConfig)


@verbatim("prompt")
@cli.entry("sample", check=check)
def main(cfg: DictConfig) -> None:
    try:
        sample(check(config.plain(cfg)))
    except BrokenPipeError:  # `| head` has seen enough; what Python would still write as it ends goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sample(settings: SampleConfig) -> None:
    """Write the samples to stdout: the first as it is made, the others, made with it, after it."""
    import torch

    from tid.data.tokenizer import EOT, encode, fast_encoding, load_tokenizer
    from tid.device import choose_device, choose_precision
    from tid.generation import TextStream, generate
    from tid.load import load_model

    device = choose_device(settings.device)
    loaded = load_model(settings.checkpoint, device)
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    try:
        prompt = [EOT, *encode(tokenizer, settings.prompt)]
    except ValueError as error:
        raise config.ConfigError(f"prompt: {error}") from None
    remark(warning(len(prompt), settings.max_new_tokens, loaded.context))
    steps = generate(
        loaded.model,
        torch.tensor(prompt),
        context=loaded.context,
        num_samples=settings.num_samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        end=EOT,
        generator=torch.Generator(device).manual_seed(settings.seed),
        precision=choose_precision(settings.precision, device),
    )
    encoding = fast_encoding(tokenizer)
    write(steps, settings.prompt, [TextStream(encoding, EOT) for _ in range(settings.num_samples)])


def write(steps, prompt: str, streams: list) -> None:
    """Write the samples of `steps`, an iterable of next tokens (num_samples,), each after the prompt."""
    show(heading(0, len(streams)) + prompt)
    others = [""] * len(streams)
    for tokens in steps:
        pieces = [stream.add(token) for stream, token in zip(streams, tokens.tolist(), strict=True)]
        show(pieces[0])
        others = [text + piece for text, piece in zip(others, pieces, strict=True)]
    show(streams[0].finish() + "\n")
    for number in range(1, len(streams)):
        show(heading(number, len(streams)) + prompt + others[number] + streams[number].finish() + "\n")


def heading(number: int, num_samples: int) -> str:
    return f"--- {number + 1} of {num_samples}\n" if num_samples > 1 else ""


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def remark(text: str | None) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


def warning(prompt_tokens: int, max_new_tokens: int, context: int) -> str | None:
    """What will happen if the text outgrows the context."""
    if prompt_tokens > context:
        return (
            f"the prompt has {prompt_tokens:,} tokens and the model was trained on {context:,} at a time: it reads "
            f"the last {context:,} of them, and later no more than that"
        )
    if prompt_tokens + max_new_tokens - 1 > context:
        return (
            f"the model was trained on {context:,} tokens at a time: whenever that many are read, it forgets all "
            f"but the last {max(1, context // 2):,}"
        )
    return None


if __name__ == "__main__":
    main()
