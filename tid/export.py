"""A trained model as a Hugging Face folder: ``python -m tid.export checkpoint=outputs/<name>/<run> to=<folder>``."""

import shlex
import shutil
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from tid import cli, config

FILES = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json"),
    *("tid.json", "tokenizer.json", "tokenizer_config.json"),
}


class ExportConfig(BaseModel):
    """Schema of conf/export.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    checkpoint: config.Folder
    to: config.Folder
    overwrite: bool
    tokenizer_dir: config.Folder


check = partial(config.check, schema=ExportConfig)


@cli.entry("export", check=check)
def main(cfg: DictConfig) -> None:
    print(export(check(config.plain(cfg))))


def export(settings: ExportConfig) -> Path:
    """Write the folder whole or not at all, and return it. Raises ConfigError when something else is there,
    DataError when it cannot be written."""
    to = Path(settings.to).absolute()
    refuse_occupied(to, settings.overwrite)

    import torch

    from tid.card import card
    from tid.data.folders import new_folder
    from tid.data.tokenizer import EOT, EOT_TEXT, VOCABULARY, load_tokenizer
    from tid.llama import CONFIG, WEIGHTS, llama_config, write_weights
    from tid.load import RECORD, load_model
    from tid.logs import write_json, write_text

    loaded = load_model(settings.checkpoint, torch.device("cpu"))
    shape = loaded.model.shape
    if shape.vocab_size != VOCABULARY:
        raise config.ConfigError(f"model.vocab_size: wanted GPT-2's {VOCABULARY}, got {shape.vocab_size}")
    load_tokenizer(settings.tokenizer_dir)
    command = shlex.join(["python", "-m", "tid.export", f"checkpoint={settings.checkpoint}", f"to={settings.to}"])
    with new_folder(to) as folder:
        write_weights(loaded.model, folder / WEIGHTS)
        write_json(folder / CONFIG, llama_config(shape, loaded.context, EOT))
        shutil.copyfile(Path(settings.tokenizer_dir) / "tokenizer.json", folder / "tokenizer.json")
        write_json(folder / "tokenizer_config.json", tokenizer_config(loaded.context, EOT, EOT_TEXT))
        special = {f"{role}_token": EOT_TEXT for role in ("bos", "eos", "pad")}
        write_json(folder / "special_tokens_map.json", special)
        ids = {f"{role}_token_id": EOT for role in ("bos", "eos", "pad")}
        write_json(folder / "generation_config.json", {"_from_model_config": False} | ids)
        write_json(folder / RECORD, loaded.record)
        write_text(folder / "README.md", card(to.name, loaded, command))
        assert {path.name for path in folder.iterdir()} == FILES
    return Path(settings.to)


def refuse_occupied(to: Path, overwrite: bool) -> None:
    """Raise ConfigError unless `to` is free, empty, or an earlier export that may be replaced. What other commands have
    put there, as evaluations/, is work about the model that would go: it is not deleted, nor left beside another model.
    """
    if to.exists() and not to.is_dir():
        raise config.ConfigError(f"to: wanted a folder, got the file {to}")
    found = {path.name for path in to.iterdir()} if to.exists() else set()
    foreign = found - FILES if "tid.json" in found else found  # any Hugging Face folder has the other names
    if foreign:
        raise config.ConfigError(
            f"to: {to} holds what no export has written ({', '.join(sorted(foreign)[:3])}); name another folder, or "
            "move that away"
        )
    if found and not overwrite:
        raise config.ConfigError(f"to: {to} is not empty; name another folder, or add overwrite=true")


def tokenizer_config(context: int, end: int, end_text: str) -> dict:
    """tokenizer_config.json. A literal <|endoftext|> in a text is text like any other, as it was in training."""
    token = {"content": end_text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(end): token | {"special": True}},
        "bos_token": end_text,
        "eos_token": end_text,
        "pad_token": end_text,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }


if __name__ == "__main__":
    main()
