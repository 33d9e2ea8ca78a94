"""A model, a text and a training step small enough for hundreds of tests, and the components of conf/."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from tid import config
from tid.data.batches import Batches
from tid.dropout import TokenDropout
from tid.model import GPT, Decoder
from tid.schedules import Constant
from tid.step import TrainStep

CONF = Path(__file__).resolve().parents[1] / "conf"
VOCAB, EOT, CONTEXT = 101, 100, 16
CPU = torch.device("cpu")


def options(group: str) -> list[str]:
    """Names of all options of a config group, from the disk."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def build(group: str, option: str, **changes: Any) -> Any:
    """The component of conf/<group>/<option>.yaml, with some of its keys changed."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    return config.instantiate({**node, **changes}, group)


def variants(group: str) -> list[tuple[str, dict]]:
    """Each option of a group as shipped, and with every other value of its fields that list their values."""
    found: list[tuple[str, dict]] = []
    for option in options(group):
        found.append((option, {}))
        component = build(group, option)
        for field in dataclasses.fields(component):
            if get_origin(field.type) is Literal:
                others = [v for v in get_args(field.type) if v != getattr(component, field.name)]
                found += [(option, {field.name: value}) for value in others]
    return found


def tiny_shape(**changes: Any) -> GPT:
    """A 3-layer model whose weights are large enough for predictions that differ."""
    fields = {
        "num_layers": 3, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "vocab_size": VOCAB,
        "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.2, "init_from": None,
    }  # fmt: skip
    return GPT(**(fields | changes))


def tiny_model(seed: int = 0, **changes: Any) -> Decoder:
    return tiny_shape(**changes).build(seed)


def tiny_text(length: int = 1200, seed: int = 0) -> np.ndarray:
    """uint16 tokens (length,) of skewed frequency with EOT about every twelve, at both ends too."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, length), EOT).astype(np.int64) - 1
    tokens[rng.random(length) < 1 / 12] = EOT
    tokens[[0, -1]] = EOT
    return tokens.astype(np.uint16)


def window(rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, CONTEXT) of consecutive pieces of a text."""
    text = torch.from_numpy(tiny_text(rows * (CONTEXT + 1), seed).astype(np.int64)).view(rows, CONTEXT + 1)
    return text[:, :-1].clone(), text[:, 1:].clone()


def token_counts() -> Tensor:
    return torch.from_numpy(np.bincount(tiny_text(), minlength=VOCAB)).float()


def tiny_dropout(
    scorer: Any = "random", selector: Any = "lowest", schedule: Any = 0.3, **changes: Any
) -> TokenDropout:
    """A TokenDropout; components by option or as objects, a schedule also as a constant rate."""
    scorer = build("scorer", scorer) if isinstance(scorer, str) else scorer
    selector = build("selector", selector) if isinstance(selector, str) else selector
    if isinstance(schedule, str):
        schedule = build("drop_schedule", schedule)
    elif not callable(schedule):
        schedule = Constant(rate=schedule)
    fields = {"counts": token_counts(), "protect_first": 1, "protected_token": EOT, "seed": 7}
    return TokenDropout(scorer, selector, schedule, **(fields | changes))


def tiny_step(
    *,
    scorer: Any = "random",
    selector: Any = "lowest",
    mode: Any = "zero",
    schedule: Any = 0.3,
    optim: Any = "adamw",
    protect_first: int = 1,
    text: np.ndarray | None = None,
    stride: int = CONTEXT,
    seed: int = 3,
    model: Decoder | None = None,
    device: torch.device = CPU,
    **changes: Any,
) -> TrainStep:
    """A TrainStep on the tiny model and text; `changes` go to it."""
    optim = build("optim", optim, lr=3e-3, warmup_steps=2) if isinstance(optim, str) else optim
    batches = Batches(
        tiny_text() if text is None else text,
        context=CONTEXT, stride=stride, seed=seed, protected_token=EOT, device=device,
    )  # fmt: skip
    fields = {"batch_size": 4, "accumulate_steps": 1, "total_steps": 8, "window": 8, "precision": "fp32",
              "fast": False, "kernels": "auto"}  # fmt: skip
    return TrainStep(
        (tiny_model(seed) if model is None else model).to(device),
        build("drop_mode", mode) if isinstance(mode, str) else mode,
        tiny_dropout(
            scorer, selector, schedule, seed=seed, protect_first=protect_first, counts=token_counts().to(device)
        ),
        optim,
        batches,
        **(fields | changes),
    )


def run(step: TrainStep, steps: int, first: int = 0) -> TrainStep:
    """Do the updates first … first + steps − 1."""
    for number in range(first, first + steps):
        step(number)
    return step


def weights(step: TrainStep) -> dict[str, Tensor]:
    """A copy of the model's weights."""
    return {name: p.detach().clone() for name, p in step.model.named_parameters()}


def optimizer_values(step: TrainStep) -> dict[str, Tensor]:
    """A copy of the optimizers' state, learning rates apart."""
    return {
        f"{o}.{p}.{name}": value.clone()
        for o, optimizer in enumerate(step.updating.optimizers)
        for p, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if name != "lr"
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit-identical tensors under the same names."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"differ: {different}"
