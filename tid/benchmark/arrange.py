"""From the settings of conf/bench.yaml to what is timed: components, text, device."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tid.benchmark.variants import Setup, Variant, made_up_text
from tid.benchmark.whole import Cadence, Text, made_up_validation
from tid.config import ConfigError, instantiate
from tid.device import choose_device, choose_precision, set_up
from tid.drop_modes import DropMode
from tid.scorers import NoScorer

GROUPS = ("scorers", "drop_modes", "optims")


@dataclass(frozen=True)
class Bench:
    """Everything that the parts of the benchmark share. `said`: what was chosen for the user, and what the text is."""

    setup: Setup
    parts: dict[str, dict[str, Any]]  # components of GROUPS by their names
    plain_optim: Any
    cadence: Cadence
    held_out: Text
    model_name: str
    said: list[str]

    def variant(self, scorer: str, drop_mode: str, optim: str, batch_size: int) -> Variant:
        """The combination of these names."""
        chosen = [self.parts[group][name] for group, name in zip(GROUPS, (scorer, drop_mode, optim), strict=True)]
        return Variant(scorer, drop_mode, optim, *chosen, batch_size)

    def no_drop(self, batch_size: int) -> Variant:
        return Variant("none", "", "adamw", NoScorer(), DropMode(), self.plain_optim, batch_size)


def arrange(settings: dict) -> Bench:
    """Put together what `settings`, a checked configuration in plain Python, names. Raises ConfigError, DataError."""
    device = choose_device(settings["device"])
    set_up(device)
    key = "model" if device.type == "cuda" else "cpu_model"
    shape = instantiate(settings[key], key)
    said = []
    if key == "cpu_model" and settings["cpu_model"] != settings["model"]:
        said.append("no GPU: a small model is timed (conf/bench.yaml's cpu_model); model=gpt_125m takes another")
    text, held_out, cadence = texts(settings, shape.vocab_size, said)
    setup = Setup(
        shape=shape,
        selector=instantiate(settings["selector"], "selector"),
        schedule=instantiate(settings["drop_schedule"], "drop_schedule"),
        text=text,
        end=shape.vocab_size - 1,
        context=settings["context"],
        protect_first=settings["protect_first"],
        seed=settings["seed"],
        precision=choose_precision(settings["precision"], device),
        device=device,
        fast=settings["compile"] and device.type == "cuda",
        eval_batch_size=settings["eval_batch_size"],
    )
    parts = {group: {name: instantiate(node, f"{group}.{name}") for name, node in settings[group].items()}
             for group in GROUPS}  # fmt: skip
    name = f"{shape.num_layers} layers x {shape.hidden_size}"
    return Bench(setup, parts, instantiate(settings["plain_optim"], "plain_optim"), cadence, held_out, name, said)


def texts(settings: dict, vocabulary: int, said: list[str]) -> tuple[np.ndarray, Text, Cadence]:
    """Training tokens, the held-out text, and how often it is read; made up unless `data` names a source."""
    fields = ("total_steps", "log_every", "eval_every", "checkpoint_every", "eval_batch_size", "val_tokens")
    cadence = {name: settings[name] for name in fields}
    if settings["data"] is None:
        length = settings["made_up_tokens"]
        said.append(f"text: {length:,} made-up tokens with Zipf's frequencies (data=builtin takes real ones)")
        text = made_up_text(length, vocabulary, settings["seed"])
        return text, made_up_validation(text, cadence["val_tokens"], vocabulary), Cadence(**cadence)
    from tid.data import load_corpus  # takes a second

    corpus = load_corpus(instantiate(settings["data"], "data"), settings["data_dir"], settings["tokenizer_dir"])
    if vocabulary != len(corpus.token_chars):
        raise ConfigError(f"model.vocab_size: wanted the text's {len(corpus.token_chars)}, got {vocabulary}")
    val = corpus.val
    said.append(f"text: {corpus.manifest['folder']}")
    cadence["val_tokens"] = len(val.tokens)
    decode = partial(decoded, corpus.tokenizer)
    held_out = Text(val.tokens, val.doc_starts, corpus.token_chars, corpus.token_bytes, decode)
    return corpus.train.tokens, held_out, Cadence(**cadence)


def decoded(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)
