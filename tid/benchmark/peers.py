"""What our steps are held against: a bare PyTorch loop of our model, transformers' Llama of the same shape, and a GPT-2
of that width and depth in plain PyTorch.

All get every advantage that a plain loop can have: the batches lie on the device beforehand, torch's fused AdamW,
no metrics, no checks, a constant learning rate.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tid.benchmark import gpt2
from tid.benchmark.race import Contender
from tid.benchmark.variants import Setup, batches_of, tensor_bytes
from tid.llama import llama_config
from tid.optim import AdamW
from tid.precision import autocast

BATCHES = 64  # made beforehand, then again from the first
MISSING = "peers: transformers is not installed, so its Llama is left out; pip install 'tid[dev]' or transformers"


class PlainStep:
    """Forward, backward, clip, AdamW: a plain PyTorch loop's step on `loss(tokens, targets)`."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], setup: Setup, optim: AdamW, batch_size: int
    ) -> None:
        self.model, self.loss, self.setup, self.clip_norm = model, loss, setup, optim.clip_norm
        (self.optimizer,) = optim.build(list(model.named_parameters()))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision == "fp16")
        self.batches = cycle(setup, batch_size)
        shape, context = setup.shape, setup.context
        self.flops = batch_size * context * shape.flops_per_token(context)

    def __call__(self) -> None:
        tokens, targets = next(self.batches)
        with autocast(self.setup.precision, self.setup.device):
            loss = self.loss(tokens, targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def moved_bytes(self) -> float:
        return 2.0 * tensor_bytes(self.optimizer.state_dict()["state"]) + 3.0 * tensor_bytes(self.parameters)


def cycle(setup: Setup, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches that our steps read too, again and again."""
    batches = batches_of(setup)
    rows = torch.arange(batch_size, device=setup.device)
    made = []
    for number in range(max(1, min(BATCHES, batches.num_sequences // batch_size))):
        batches.load_orders(number * batch_size, batch_size)
        made.append(tuple(t.contiguous() for t in batches.gather(number * batch_size + rows)))
    while True:
        yield from made


def bare_step(setup: Setup, optim: AdamW, batch_size: int) -> PlainStep:
    """Our own model, in a loop that knows nothing of ours."""
    model = setup.shape.build(setup.seed).to(setup.device)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())

    return PlainStep(model, loss, setup, optim, batch_size)


def llama_step(setup: Setup, optim: AdamW, batch_size: int, compiled: bool) -> PlainStep:
    """transformers' Llama; `compiled`: model and loss by torch.compile as one function."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict(llama_config(setup.shape, setup.context, setup.end))
    config._attn_implementation = "sdpa"
    torch.manual_seed(setup.seed)
    model: Any = LlamaForCausalLM(config).float().to(setup.device).train()

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return PlainStep(model, torch.compile(loss, dynamic=False) if compiled else loss, setup, optim, batch_size)


def gpt2_step(setup: Setup, optim: AdamW, batch_size: int, compiled: bool) -> PlainStep:
    """GPT-2, as `llama_step`."""
    torch.manual_seed(setup.seed)
    model = gpt2.GPT2(setup.shape, setup.context).to(setup.device)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    step = PlainStep(model, torch.compile(loss, dynamic=False) if compiled else loss, setup, optim, batch_size)
    step.flops = batch_size * setup.context * gpt2.flops_per_token(setup.shape, setup.context)
    return step


def load_transformers() -> bool:
    """Import transformers' Llama, so that no step is charged with it; False when it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return False
    importlib.import_module("transformers.models.llama.modeling_llama")
    return True


def contender(setup: Setup, optim: AdamW, batch_size: int, kind: str) -> Contender:
    """kind: eager | compiled, transformers' Llama; gpt2, always compiled."""
    make, compiled = gpt2_step if kind == "gpt2" else llama_step, kind != "eager"
    return Contender(
        label="plain GPT-2, compiled" if kind == "gpt2" else f"transformers Llama, {kind}",
        batch_size=batch_size,
        context=setup.context,
        make=lambda: make(setup, optim, batch_size, compiled),
        facts={"kind": "peer", "peer": kind},
        compiled=compiled,
    )


def transformers_version() -> str | None:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None
