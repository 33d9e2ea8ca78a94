"""A trained model for any command: from a run's folder, a checkpoint file, or an exported Hugging Face folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tid import checkpoint, config, llama
from tid.checkpoint import BEST, CheckpointError
from tid.config import NEUTRAL, ConfigError
from tid.config_file import FILE, edits
from tid.data import Corpus, load_corpus
from tid.logs import say
from tid.model import Decoder
from tid.same_text import refuse_other_text

RECORD = "tid.json"  # in an exported folder: what is known of the run that made it
TEXTS = "data=builtin, data=jsonl data.train=... data.val=..."  # how a text is named


@dataclass(frozen=True)
class Loaded:
    """A model, and what is known of its training.

    context: tokens it was trained on at a time. record: of the run that trained it: config (what determines the
    result), step, validation (the figures at the last evaluation until that step), data (the text's name and
    checksums), summary (summary.json, if the run is done); None for a model from elsewhere. file: what was read.
    folder: where results about it belong, under name: of a run its folder, else the one that the file lies in.
    """

    model: Decoder
    context: int
    record: dict | None
    file: Path
    folder: Path
    name: str


def load_model(path: str | Path, device: torch.device) -> Loaded:
    """The model at `path`, in float32: of a run's folder best.pt, of an exported folder model.safetensors.

    Raises CheckpointError and LlamaError, both ConfigErrors.
    """
    path = Path(path)
    return load_folder(path, device) if llama.is_folder(path) else load_checkpoint(path, device)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that `path` names: the file itself, or best.pt of a run's folder."""
    if not path.is_dir():
        return path
    if (path / "checkpoints").is_dir():
        return path / "checkpoints" / BEST
    found = sorted(str(folder.parent) for folder in path.glob("*/checkpoints"))
    hint = f"; did you mean {found[0]}?" if found else ""
    raise CheckpointError(f"{path}: neither a run's folder nor an exported one (config.json, {llama.WEIGHTS}){hint}")


def load_checkpoint(path: Path, device: torch.device) -> Loaded:
    """The model of a run, as the checkpoint has it: configuration, too. Should the run's config.yaml have been edited,
    stderr says so, and that it does not count."""
    file = checkpoint_file(path)
    state = checkpoint.load(file)
    run = state["run"]
    shape = config.instantiate(run["config"]["model"] | {"init_from": None}, "model")  # the weights are here
    model = shape.build(seed=0)
    model.load_state_dict(state["train"]["model"])
    of_run = run_folder_of(file)
    if of_run and (edited := edits(of_run, run["config"])):
        say(f"warning: {of_run / FILE} {edited}; what counts here is in the checkpoint: the settings it was made with")
    record = {
        "checkpoint": file.name,
        "step": run["done"],
        "config": {key: value for key, value in run["config"].items() if key not in NEUTRAL},
        "validation": run["final"],
        "data": run["data"],
        "summary": of_run and read_json(of_run / "summary.json"),
    }
    folder = of_run or file.resolve().parent
    return Loaded(model.to(device).eval(), run["config"]["context"], record, file, folder, file.stem)


def run_folder_of(file: Path) -> Path | None:
    """The folder of the run whose checkpoint `file` is; None for one that was put elsewhere, where what lies around it
    is not its run's."""
    folder = file.resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


def load_folder(path: Path, device: torch.device) -> Loaded:
    shape, context = llama.shape_of(path)
    model = shape.build(seed=0)
    llama.load_weights(model, path)
    return Loaded(model.to(device).eval(), context, read_json(path / RECORD), path, path, "model")


def own_text(loaded: Loaded, data_dir: str, tokenizer_dir: str, otherwise: str = "") -> Corpus:
    """The text of the run that trained the model. Raises ConfigError when that is not known, or has changed since
    (OtherText; otherwise: what the user can do then, but to put it back), and DataError."""
    if not loaded.record:
        raise ConfigError(f"data: {loaded.file} does not say which text it was trained on; name one: {TEXTS}")
    corpus = load_corpus(config.instantiate(loaded.record["config"]["data"], "data"), data_dir, tokenizer_dir)
    trained_on = loaded.record.get("data") or (loaded.record["summary"] or {}).get("data", {})  # an older export's
    refuse_other_text(trained_on, corpus, loaded.file, otherwise)
    return corpus


def read_json(path: Path) -> dict | None:
    """The mapping in a JSON file; None when there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
