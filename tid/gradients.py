"""The flat gradient of all matrices, made on a second stream under the backward pass."""

import math
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tid import distributed
from tid.pieces import Pieces
from tid.twin import split_like

LAG = 12  # hand-ins, two or three blocks', that the second stream may be behind; what it reads cannot be freed before


def square_sum(x: Tensor) -> Tensor:
    return x.float().square().sum()


class Gradients:
    """Gradients of a twin's matrices, which lie one after the other in `flat` (N,), and of its norms.

    Each product of a backward pass hands over the two factors of its weight's gradient (`sink`). The first matrix is
    the embedding; four more make a block. A part, the embedding or a block, is finished once all that used it in a
    forward pass have come back: its sum of squares is then taken, while it is in the cache.

    Gradients of several micro-batches are summed in `flat`'s own dtype.
    """

    def __init__(self, shapes: list[torch.Size], dtype: torch.dtype, device: torch.device, pieces: Pieces) -> None:
        self.flat = torch.zeros(sum(shape.numel() for shape in shapes), dtype=dtype, device=device)
        self.matrices = split_like(self.flat, shapes)
        sizes = [m.numel() for m in self.matrices]
        self.parts = self.flat.split([sizes[0], *(sum(sizes[i : i + 4]) for i in range(1, len(sizes), 4))])
        self.square_sums = torch.zeros(len(self.parts), device=device)
        self.norm_sums = torch.zeros(2 * len(self.parts) - 1, pieces.norm_groups, shapes[0][1], device=device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.square_sum = pieces.fuse(square_sum)
        self.pieces = pieces
        self.begin()

    def begin(self) -> None:
        """A new update begins: what is there will be overwritten."""
        self.awaited = [0] * len(self.matrices)
        self.written: set[int] = set()
        self.finished: set[int] = set()
        self.rows: list[tuple[Tensor, Any]] = []
        self.table_written: torch.cuda.Event | None = None
        self.held: deque = deque()
        self.last = False
        self.input_gradient: Tensor | None = None
        self.norm_sums.zero_()

    def sink(self, kind: str, number: int) -> Any:
        """What takes the gradients of a matrix, of a norm, or of the embedding's rows."""
        if kind == "matrix":
            return MatrixSink(self, number)
        return NormSink(self, number) if kind == "norm" else RowSink(self)

    @contextmanager
    def beside(self):
        """What is launched here runs on the second stream, after all that was launched before."""
        if not self.stream:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield

    def hold(self, *tensors: Tensor) -> None:
        """Keep what the second stream still reads from being freed; wait for it where it is far behind."""
        self.held.append((self.stream.record_event() if self.stream else None, tensors))
        while len(self.held) > LAG:
            event, _ = self.held.popleft()
            if event:
                torch.cuda.current_stream().wait_event(event)

    def join(self) -> None:
        """Wait, on the device, for the second stream."""
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)
        self.held.clear()

    def take(self, number: int, dy: Tensor, x: Tensor) -> None:
        """Add dyᵀ x, of dy (N, outputs) and x (N, inputs), to the gradient of matrix `number`."""
        with self.beside(), torch.no_grad():
            into = self.matrices[number]
            if number in self.written:
                into += dy.T @ x
            elif into.dtype == dy.dtype:
                torch.mm(dy.T, x, out=into)
            else:
                into.copy_(dy.T @ x)
            self.written.add(number)
            self.awaited[number] -= 1
            if number == 0 and self.stream:
                self.table_written = self.stream.record_event()
            part = (number + 3) // 4
            if self.last and part and not any(self.awaited[4 * part - 3 : 4 * part + 1]):
                self.finish(part)
        self.hold(dy, x)

    def take_norm(self, number: int, add_: Callable, dh: Tensor, h: Tensor, weight: Tensor) -> None:
        """Have `add_` add the gradient of norm `number` from what its backward pass knows: see tid.pieces.Norm."""
        with self.beside(), torch.no_grad():
            groups = math.gcd(h.numel() // h.shape[-1], self.norm_sums.shape[1])
            add_(self.norm_sums[number, :groups], dh, h, weight)
        self.hold(dh, h)

    def expect_rows(self, tokens: Tensor) -> Any:
        """What will say to which rows of the embedding the gradient of a pass on tokens (N,) is to be added."""
        if not self.pieces.orders_rows(len(tokens)):
            return tokens
        with self.beside():
            places = self.pieces.kernels.in_order(tokens)
        self.hold(tokens)
        return places

    def take_rows(self, dy: Tensor, places: Any) -> None:
        """Add dy (N, C) to the rows of the embedding that `expect_rows` was told, once the backward pass is over. Of
        several passes the first comes last: `input_gradient` is then its."""
        self.rows.append((dy, places))
        self.input_gradient = dy

    def norms(self) -> Tensor:
        """Gradient of all norms' weights, one after the other (n · C,)."""
        return self.norm_sums.sum(dim=1).flatten()

    def finish(self, part: int) -> None:
        """Nothing more comes for this part, from this process."""
        self.finished.add(part)
        distributed.sum_([self.parts[part]])
        self.square_sums[part].copy_(self.square_sum(self.parts[part]))

    @torch.no_grad()
    def collect(self) -> None:
        """After the backward pass of a micro-batch: what could not be done beside it. The embedding's rows wait only
        for the output matrix's gradient, which is the same matrix's and was made first."""
        if self.table_written:
            torch.cuda.current_stream().wait_event(self.table_written)
        for dy, places in self.rows:
            self.pieces.add_rows_(self.matrices[0], dy, places)
        self.rows = []
        self.join()
        if self.last:
            for number in set(range(len(self.matrices))) - self.written:
                self.matrices[number].zero_()
            for part in set(range(len(self.parts))) - self.finished:
                self.finish(part)

    def backward(self, objective: Tensor, last: bool) -> None:
        """The backward pass of a micro-batch; `last`: no other follows before the update."""
        self.last = last
        with torch.autograd.set_multithreading_enabled(False):  # a thread of its own has cuBLAS's workspace again
            objective.backward()
        self.collect()


class MatrixSink:
    """Where the products of one matrix hand in."""

    def __init__(self, gradients: Gradients, number: int) -> None:
        self.gradients, self.number = gradients, number

    def expect(self) -> None:
        """A forward pass has used the matrix."""
        self.gradients.awaited[self.number] += 1

    def __call__(self, dy: Tensor, x: Tensor) -> None:
        self.gradients.take(self.number, dy, x)


class RowSink:
    """Where the embedding's rows hand in."""

    def __init__(self, gradients: Gradients) -> None:
        self.expect, self.take = gradients.expect_rows, gradients.take_rows

    def __call__(self, dy: Tensor, places: Any) -> None:
        self.take(dy, places)


class NormSink:
    """Where a norm hands in: what its weight's gradient is made from, or all of it, added to `sums` (groups, C) at
    once."""

    def __init__(self, gradients: Gradients, number: int) -> None:
        self.gradients, self.number = gradients, number

    @property
    def sums(self) -> Tensor:
        return self.gradients.norm_sums[self.number]

    def __call__(self, add_: Callable, dh: Tensor, h: Tensor, weight: Tensor) -> None:
        self.gradients.take_norm(self.number, add_, dh, h, weight)
