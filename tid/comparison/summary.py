"""What a comparison needs of a done run's summary.json."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tid.config import ConfigError
from tid.messages import shown

FILE = "summary.json"
AGAIN = "copy the run's folder again, or train it again"

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A part of it. Other keys are not looked at; one with a default may be absent, since earlier versions did not
    write it."""

    model_config = ConfigDict(strict=True)


class Figures(Part):
    """An evaluation: nats per token, bits per character and per UTF-8 byte."""

    val_loss: Finite
    val_bpc: Finite
    val_bpb: Finite


class Best(Figures):
    """The evaluation that was best on the even documents."""

    val_select_loss: Finite
    val_report_loss: Finite | None  # null where no token of the odd documents is predicted


class Text(Part):
    """What was trained and validated on."""

    text: str
    train: Annotated[str, Field(alias="train.jsonl")]
    val: Annotated[str, Field(alias="val.jsonl")]


class Versions(Part):
    """Of the software."""

    tid: str
    torch: str


class Summary(Part):
    """All of it."""

    final: Figures
    best: Best
    steps: Annotated[int, Field(ge=1)]
    tokens: int
    drop_rate: Finite
    step_ms: Finite
    score_ms: Finite
    seconds: Finite
    train_flops: Finite
    score_flops: Finite
    precision: str
    device: str
    data: Text
    git_sha: str | None
    source: str | None = None
    own_source: dict[str, str] = {}
    versions: Versions


def read_summary(folder: Path) -> dict:
    """summary.json of a run's folder, as it is. Raises ConfigError, naming the key, unless it is a `Summary`."""
    summary = json.loads((folder / FILE).read_text(encoding="utf-8"))
    try:
        Summary.model_validate(summary)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join([FILE.removesuffix(".json"), *map(str, found["loc"])])
        wanted = "a mapping" if found["type"] == "model_type" else found["msg"].removeprefix("Input should be ")
        wrong = "missing" if found["type"] == "missing" else f"wanted {wanted}, got {shown(found['input'])}"
        raise ConfigError(f"{FILE}: {where.partition('.')[2] or 'all of it'}: {wrong}; {AGAIN}") from None
    return summary
