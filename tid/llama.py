"""The Hugging Face layout of our model, Llama's: config.json and model.safetensors, written and read.

Names and layout are the same on both sides (see tid/model.py); only the prefixes differ, and the rows that pad our
vocabulary stay behind.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tid.config import ConfigError
from tid.model import GPT, Decoder
from tid.pin import WEIGHTS, pin, split_pin, weights_sha256

CONFIG = "config.json"
HEAD = "lm_head.weight"  # left out when it is tied; some writers store it all the same
# config.json's name of each field of our shape that the weights depend on
FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}


class LlamaError(ConfigError):
    """A folder that does not hold a model of our kind; the message names the field."""


# ----------------------------------------------------------------------------------------------- write


def llama_config(shape: GPT, context: int, end: int) -> dict:
    """config.json for transformers 4 (rope_theta) and 5 (rope_parameters). end: id of the token between documents."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(shape, field) for field, name in FIELDS.items()},
        "num_key_value_heads": shape.num_heads,
        "head_dim": shape.hidden_size // shape.num_heads,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "initializer_range": shape.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
    }


def llama_name(name: str) -> str:
    """Llama's name of one of our parameters."""
    return "model." + name.replace("blocks.", "layers.")


def write_weights(model: Decoder, path: Path) -> None:
    """model.safetensors in float32: the tied matrix once, without the rows of padding."""
    tensors = {llama_name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    embedding = llama_name("embed_tokens.weight")
    tensors[embedding] = tensors[embedding][: model.shape.vocab_size]
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


# ------------------------------------------------------------------------------------------------ read


def is_folder(path: Path) -> bool:
    """Does `path` look like a Hugging Face folder?"""
    return (path / CONFIG).is_file()


def read_config(folder: Path) -> dict:
    """config.json of a model that ours can be. Raises LlamaError, with the reason, for any other."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlamaError(f"{folder / CONFIG}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise LlamaError(f"{folder / CONFIG}: wanted a mapping")
    rope = found.get("rope_parameters") or {}
    found["rope_theta"] = rope.get("rope_theta", found.get("rope_theta", 10000.0))
    missing = [name for name in (*FIELDS.values(), "max_position_embeddings") if name not in found]
    reason = refusal(found, rope) or (missing and f"{', '.join(missing)}: missing")
    if reason:
        raise LlamaError(f"{folder / CONFIG}: {reason}")
    return found


def refusal(found: dict, rope: dict) -> str | None:
    """Why the model of a config.json cannot be ours, None if it can. What a key means when absent is LlamaConfig's."""
    kind, heads = found.get("model_type"), found.get("num_attention_heads", 32)
    if kind != "llama":
        return f"model_type: wanted llama, got {kind}"
    if (groups := found.get("num_key_value_heads", heads)) != heads:
        return (
            f"num_key_value_heads: wanted num_attention_heads ({heads}), got {groups}: grouped-query attention, "
            "and here every head has keys and values of its own"
        )
    if not found.get("tie_word_embeddings", False):
        return "tie_word_embeddings: wanted true, got false: an output matrix of its own, and ours is the embedding"
    for name in ("attention_bias", "mlp_bias"):
        if found.get(name, False):
            return f"{name}: wanted false, got true: our layers have no biases"
    if (activation := found.get("hidden_act", "silu")) != "silu":
        return f"hidden_act: wanted silu, got {activation}"
    size = found.get("hidden_size", 4096) // heads
    if (head_dim := found.get("head_dim") or size) != size:
        return f"head_dim: wanted hidden_size / num_attention_heads ({size}), got {head_dim}"
    scaling = found.get("rope_scaling") or rope
    if (scaled := scaling.get("rope_type", scaling.get("type", "default"))) != "default":
        return f"rope_type: wanted default, got {scaled}: our rotary positions are not scaled"
    if found.get("quantization_config"):
        return "quantization_config: wanted weights as floating-point numbers"
    return None


def shape_of(folder: Path) -> tuple[GPT, int]:
    """Shape and context (the most tokens it was trained on at a time) of the model in a folder. Raises LlamaError."""
    found = read_config(folder)
    fields: dict[str, Any] = {field: found[name] for field, name in FIELDS.items()}
    try:
        shape = GPT(**fields, init_std=found.get("initializer_range", 0.02), init_from=None)
    except ValueError as error:
        raise LlamaError(f"{folder / CONFIG}: {error}") from None
    return shape, found["max_position_embeddings"]


def pinned(config: dict) -> dict:
    """A run's configuration with the checksum of the weights after model.init_from, if it starts from a folder.

    Raises LlamaError when there are no weights.
    """
    init_from = config["model"].get("init_from")
    if init_from and weights_sha256(init_from) is None:
        raise LlamaError(
            f"model.init_from: wanted a folder with {CONFIG} and {WEIGHTS}, got {split_pin(init_from)[0]}; python -m "
            "tid.export makes one of a run"
        )
    return pin(config)


def refuse_mismatch(shape: GPT) -> None:
    """Raise LlamaError unless the folder of `shape.init_from` has a model of that shape, naming every field that
    differs, and holds the weights of the checksum, if there is one. Reads no weights but to check that."""
    folder, digest = split_pin(shape.init_from)
    if digest and (now := weights_sha256(str(folder))) not in (digest, None):
        raise LlamaError(
            f"model.init_from: {folder} had weights with sha256 {digest} and now has {now}; put the first ones back, "
            "or give the folder anew, without its checksum, to start from these"
        )
    theirs, _ = shape_of(folder)
    pairs = {field: (getattr(theirs, field), getattr(shape, field)) for field in FIELDS}
    wrong = [f"  model.{f}: {folder} has {a}, the configuration {b}" for f, (a, b) in pairs.items() if a != b]
    if wrong:
        raise LlamaError("\n".join(["model.init_from: that model has another shape", *wrong]))


@torch.no_grad()
def load_weights(model: Decoder, folder: Path) -> None:
    """Copy the folder's weights into `model`, in float32. Raises LlamaError for missing, additional, misshapen or
    unreadable tensors."""
    path, theirs = folder / WEIGHTS, {}
    try:
        with safe_open(path, framework="pt") as file:
            theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LlamaError(f"{path}: cannot be read ({error}); one file is wanted, not several shards") from None
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("rotary_emb.inv_freq")}
    embedding = llama_name("embed_tokens.weight")
    if HEAD in theirs and torch.equal(theirs[HEAD], theirs.get(embedding, theirs[HEAD])):
        theirs.pop(HEAD)
    ours = {llama_name(name): parameter for name, parameter in model.named_parameters()}
    if odd := sorted(theirs.keys() ^ ours.keys()):
        kinds = (f"{name} ({'additional' if name in theirs else 'missing'})" for name in odd[:4])
        raise LlamaError(f"{path}: {len(odd)} tensors are not as in our model: {', '.join(kinds)}")
    for name, ours_ in ours.items():
        target = ours_[: model.shape.vocab_size] if name == embedding else ours_
        copy(theirs[name], target, f"{path}: {name}")


def copy(source: Tensor, target: Tensor, where: str) -> None:
    if source.shape != target.shape or not source.is_floating_point():
        raise LlamaError(f"{where}: wanted {tuple(target.shape)} numbers, got {tuple(source.shape)} {source.dtype}")
    target.copy_(source)
