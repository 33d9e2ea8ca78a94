"""Kernels by hand: on a CPU Triton interprets them, and compiles them for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

import kernel_checks
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from tid.kernels import between, loss, loss_on_chip, row_gradient, self_attention

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
TENSORS = dict.fromkeys(("qkv", "dy", "dqkv", "y", "gate_up", "dh", "h", "low", "logits"), "*bf16") | dict.fromkeys(
    ("targets", "tokens", "order", "starts", "ends", "counts"), "*i64"
)
INTEGERS = ("items", "slots", "length", "rope_stride", "vocabulary", "rows", "each")
NUMBERS = dict.fromkeys(INTEGERS, "i32") | {"scale": "fp32", "log_gain": "fp32"}
PER_MULTIPROCESSOR = 233_472  # bytes of shared memory that a multiprocessor of an H100 has


@pytest.mark.slow
def test_interpreted_they_compute_what_the_pieces_do():
    """In a process of its own: Triton has to know before it is imported."""
    file = Path(kernel_checks.__file__)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(file.parent)}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [check.__name__ for check in kernel_checks.CHECKS]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("check", kernel_checks.CHECKS)
def test_on_a_gpu_they_compute_what_the_pieces_do(check):
    torch.manual_seed(0)
    check(torch.device("cuda"))


def compiled(kernel, capability: int, constants: dict):
    """A kernel compiled for GPUs of a compute capability, with the warps that its launch asks for."""
    constants = dict(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types = {name: {**TENSORS, **NUMBERS}.get(name, "*fp32") for name in kernel.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    kind = GluonASTSource if kernel.is_gluon() else ASTSource
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = kind(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_they_compile_for_gpus_that_are_not_here(capability):
    chosen = [
        (between.swiglu_gradient_kernel, {"SIZE": 2048, "BLOCK": 1024}),
        (loss.cross_entropy_kernel, {"COLUMNS": 50304, "BLOCK": 4096, "GRADIENT": True, "num_warps": 16}),
        (row_gradient.add_rows_kernel,
         {"SIZE": 768, "BLOCK": row_gradient.COLUMNS, "AT_ONCE": row_gradient.AT_ONCE, "SHARE": row_gradient.SHARE}),
        (row_gradient.add_shares_kernel, {"SIZE": 768, "BLOCK": 1024, "SHARE": row_gradient.SHARE}),
        (between.norm_gradient_kernel,
         {"SIZE": 768, "BLOCK": 1024, "AT_ONCE": 2, "AHEAD": 3, "SMALLEST": between.SMALLEST_WEIGHT, "num_warps": 4}),
    ]
    if capability >= 90:
        for length, own in [(64, False), (128, False), (128, True), (65, True)]:
            qkv, cos = torch.empty(8, length, 3 * 64), torch.empty(*(8,) * own, length, 64)
            counts = torch.empty(8) if length == 65 else None
            for kernel, ahead, more in [
                (self_attention.attention_kernel, self_attention.FORWARD, {"MASS": True}),
                (self_attention.attention_gradient_kernel, self_attention.BACKWARD, {}),
            ]:
                for _, (counted, *_), constants in self_attention.launches(qkv, 1, cos, ahead, counts):
                    nothing = {"counts": None} if counted is None else {}
                    chosen.append((kernel, constants | more | nothing))
    for kernel, constants in chosen:
        made = compiled(kernel, capability, constants)
        assert made.asm["cubin"]
        room = 232_448 if capability >= 90 else 101_376  # bytes of shared memory that an H100, an RTX 4060 has
        assert made.metadata.shared <= room


def test_two_rows_of_50304_logits_share_a_multiprocessor_of_a_hopper_gpu():
    def fits(columns: int, dtype: torch.dtype = torch.bfloat16, address: int = 4096, capability: int = 9) -> bool:
        logits = mock.Mock(device=torch.device("cuda"), shape=(4, columns))
        logits.element_size.return_value, logits.data_ptr.return_value = dtype.itemsize, address
        has = mock.Mock(shared_memory_per_multiprocessor=PER_MULTIPROCESSOR)
        with (
            mock.patch.object(torch.cuda, "get_device_properties", return_value=has),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=(capability, 0)),
        ):
            return loss_on_chip.fits_on_chip(logits)

    assert fits(50_304) and not fits(100_352)
    assert not fits(50_257) and not fits(50_304, torch.float32) and not fits(50_304, address=4098)
    assert not fits(4096, capability=8)
    assert not loss_on_chip.fits_on_chip(torch.zeros(2, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", ["*bf16", "*fp16"])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_program_takes_no_more_shared_memory_than_it_is_said_to(dtype, gradient, monkeypatch):
    monkeypatch.setitem(TENSORS, "logits", dtype)
    constants = {"VOCABULARY": 50257, "COLUMNS": 50304, "BLOCK": loss_on_chip.BLOCK, "WIDTH": loss_on_chip.WIDTH}
    kernel = loss_on_chip.cross_entropy_on_chip_kernel
    shared = compiled(kernel, 90, constants | {"GRADIENT": gradient, "num_warps": 16}).metadata.shared
    assert shared + 1024 <= loss_on_chip.shared_bytes(50304)  # the driver keeps 1024 for each program


def test_without_gluon_the_other_kernel_is_left():
    code = (
        "import sys, torch; sys.modules['triton.experimental'] = None; from tid import kernels; "
        "from tid.kernels import loss; assert not loss.fits_on_chip(torch.zeros(1, 8)); "
        "assert 'tid.kernels.loss_on_chip' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
