"""Our own steps as contenders: one for each scorer, drop mode, optimizer and batch size that make sense together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tid.assembly import put_together
from tid.benchmark.race import Contender
from tid.capture import loading_compiler
from tid.config import ConfigError
from tid.data.batches import Batches
from tid.dropout import check_combination
from tid.model import GPT
from tid.scorers import NoScorer
from tid.step import TrainStep

DOCUMENT_TOKENS = 400  # of made-up text
MAX_STEPS = 20_000  # length of the tables of rates; more than are ever timed
WINDOW = 50  # rows of the metrics buffer, as log_every has


@dataclass(frozen=True)
class Setup:
    """What all contenders have in common. text: uint16 tokens (N,); end: id of the token between documents."""

    shape: GPT
    selector: Any
    schedule: Any
    text: np.ndarray
    end: int
    context: int
    protect_first: int
    seed: int
    precision: str
    device: torch.device
    fast: bool
    eval_batch_size: int

    @property
    def cut(self) -> dict[str, int]:
        """How sequences are cut from the text, for Batches."""
        return {"context": self.context, "stride": self.context, "seed": self.seed, "protected_token": self.end}


@dataclass(frozen=True)
class Variant:
    """Names and components of one combination."""

    scorer_name: str
    mode_name: str
    optim_name: str
    scorer: Any
    mode: Any
    optim: Any
    batch_size: int

    @property
    def drops(self) -> bool:
        return not isinstance(self.scorer, NoScorer)

    @property
    def label(self) -> str:
        return f"{self.scorer_name}, {self.mode_name}" if self.drops else "no drop"


def made_up_text(length: int, vocabulary: int, seed: int) -> np.ndarray:
    """uint16 tokens (length,) with Zipf's frequencies; the last of the vocabulary ends a document every 400 tokens."""
    tokens = np.random.default_rng(seed).zipf(1.2, length)
    tokens = np.minimum(tokens, vocabulary - 1) - 1
    tokens[::DOCUMENT_TOKENS] = vocabulary - 1
    return tokens.astype(np.uint16)


def variants(scorers: dict, modes: dict, optims: dict, batch_size: int) -> list[Variant]:
    """Every combination; without dropping the drop mode makes no difference, so that is there once."""
    found = []
    for optim_name, optim in optims.items():
        for scorer_name, scorer in scorers.items():
            for mode_name, mode in modes.items():
                found.append(Variant(scorer_name, mode_name, optim_name, scorer, mode, optim, batch_size))
                if not found[-1].drops:
                    break
    return found


def refusal(setup: Setup, variant: Variant) -> str | None:
    """Why the components make no sense together; None when they do."""
    parts = (variant.scorer, setup.selector, variant.mode, setup.schedule, setup.shape, setup.protect_first)
    try:
        check_combination(*parts)
    except ValueError as error:
        return str(error)
    return None


def train_step(
    setup: Setup, variant: Variant, *, total_steps: int = MAX_STEPS, window: int = WINDOW, kernels: str = "auto"
) -> TrainStep:
    """The step as a run would build it. Raises ConfigError for components that make no sense together."""
    if why := refusal(setup, variant):
        raise ConfigError(why)
    with loading_compiler(setup.fast):
        model = setup.shape.build(setup.seed).to(setup.device)
    return put_together(
        model,
        setup.text,
        scorer=variant.scorer,
        selector=setup.selector,
        drop_schedule=setup.schedule,
        drop_mode=variant.mode,
        optim=variant.optim,
        protect_first=setup.protect_first,
        **setup.cut,
        batch_size=variant.batch_size,
        accumulate_steps=1,
        total_steps=total_steps,
        window=window,
        precision=setup.precision,
        fast=setup.fast,
        kernels=kernels,
    )


def batches_of(setup: Setup) -> Batches:
    return Batches(setup.text, **setup.cut, device=setup.device)


class OurStep:
    """A `TrainStep` that counts for itself. kernels: see tid.pieces.by_hand_for; gives_way: see tid.capture.Graphs."""

    def __init__(self, setup: Setup, variant: Variant, kernels: str, gives_way: bool = True) -> None:
        self.step = train_step(setup, variant, kernels=kernels)
        self.step.replays.graphs.gives_way = gives_way
        self.done = 0

    def __call__(self) -> None:
        self.step(self.done)
        self.done += 1

    @property
    def flops(self) -> float:
        """Per step, scoring included."""
        return (self.step.train_flops + self.step.score_flops) / self.done

    @property
    def moved_bytes(self) -> float:
        return update_bytes(self.step.state_dict())

    @property
    def graphs(self) -> int:
        """Steps captured so far: a turn in which one more came is timed again."""
        return self.step.replays.graphs.captures

    def scoring_ms(self) -> float | None:
        """What scoring took, lately."""
        read = self.step.score_watch.read()
        return sorted(read)[len(read) // 2] if read else None


def contender(setup: Setup, variant: Variant, several_optims: bool, kernels: str) -> Contender:
    by_hand = {"auto": "", "none": ", none by hand"}.get(kernels, f", {kernels} by hand")
    optim = f", {variant.optim_name}" if several_optims else ""
    return Contender(
        label=variant.label + optim + by_hand,
        batch_size=variant.batch_size,
        context=setup.context,
        make=lambda: OurStep(setup, variant, kernels, gives_way=False),  # race forgets what was compiled
        facts={"kind": "ours", "scorer": variant.scorer_name, "drop_mode": variant.mode_name if variant.drops else None,
               "optim": variant.optim_name, "kernels": kernels},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ bytes


def update_bytes(state: dict) -> float:
    """Bytes that an update must move, from a step's state: weights and optimizer state read and written, and four more
    per weight, the gradient in 32 bits or the gradient and the weight's copy in 16. For AdamW 28 per weight."""
    weights = tensor_bytes(state["model"]) + tensor_bytes(state["learned"])
    return 2.0 * tensor_bytes([o["state"] for o in state["optimizers"]]) + 3.0 * weights


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested value; of a quantised one those that it is stored in."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            return sum(tensor_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return 0
