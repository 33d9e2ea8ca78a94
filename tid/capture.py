"""CUDA graphs: what a step launches is recorded and then replayed as one unit, without the host."""

import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tid import distributed
from tid.messages import out_of_memory


@contextmanager
def loading_compiler(fast: bool) -> Iterator[None]:
    """Meanwhile torch's compiler is imported, which takes seconds and which torch's optimizers ask for as well. What is
    done meanwhile should leave Python alone, as drawing initial weights does. fast: is anything compiled?"""
    names = ["torch._dynamo", *(["torch._inductor.compile_fx"] if fast else [])]
    thread = threading.Thread(target=lambda: [importlib.import_module(name) for name in names])
    thread.start()
    try:
        yield
    finally:
        thread.join()


def fuse(owner: Any, *names: str) -> None:
    """Have torch compile methods of `owner` from here on."""
    for name in names:
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False))


def compile_cache() -> str:
    """The folder in which torch keeps compiled kernels from one process to the next ($TORCHINDUCTOR_CACHE_DIR)."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def forget_workspaces() -> None:
    """Free the 32 MiB that cuBLAS keeps for each stream: a graph's own lie in its pool, and are no other's."""
    torch._C._cuda_clearCublasWorkspaces()


@functools.cache
def capture_stream(device: int) -> torch.cuda.Stream:
    """The one on which everything is captured: what is freed in a graph's pool serves later captures on the same stream
    only. A second stream only fills the gaps of this one."""
    return torch.cuda.Stream(device, priority=-1)


class Graph:
    """A function of no arguments over device tensors, captured. Calling replays it and returns what the recorded
    call returned, whose tensors are written anew at each replay.

    `prepare` runs the function a few times first, so that everything is compiled and allocated; the caller undoes
    what these calls changed. pool: see `Graphs`.
    """

    WARM_UP = 2

    def __init__(self, function: Callable[[], Any], pool: Any = None) -> None:
        self.graph = torch.cuda.CUDAGraph()
        first = capture_stream(torch.cuda.current_device())
        forget_workspaces()
        with torch.cuda.graph(self.graph, pool=pool, stream=first, capture_error_mode="thread_local"):
            self.result = function()
        forget_workspaces()

    @classmethod
    def prepare(cls, function: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(cls.WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a graph takes memory of its own

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


class Graphs:
    """The CUDA graphs of a run, by any key. One replay follows the other, so that they share memory.

    Before a function is captured it is run, in memory beside the graphs'. Where there is too little, all graphs are
    released; each is captured again when it is asked for, without another run. Several processes release none: the
    others would wait in a collective that one of them has left.

    captures: how many there have been; seconds: what they took, with those runs; gives_way: are graphs released at all?
    say: takes a word to the user on each.
    """

    def __init__(self) -> None:
        self.made: dict[Any, Graph] = {}
        self.tried: set[Any] = set()
        self.pool: Any = None
        self.captures, self.seconds, self.gives_way = 0, 0.0, True
        self.say: Callable[[str], None] = lambda text: None

    def __contains__(self, key: Any) -> bool:
        return key in self.made

    def __getitem__(self, key: Any) -> Graph:
        return self.made[key]

    def capture(
        self, key: Any, what: str, function: Callable[[], Any], run: Callable[[], None], changes: Any = None
    ) -> None:
        """Capture `function` under `key`. run: calls it beforehand; changes: whose state that changes, which is put
        back (by state_dict and load_state_dict), None for nobody's; what: a word for the user."""
        torch.cuda.synchronize()  # what is under way is none of its time
        started = time.perf_counter()
        again = key in self.tried
        if not again:
            self.with_room(run, changes)
        if not self.made:
            self.pool = torch.cuda.graph_pool_handle()
        self.made[key] = Graph(function, self.pool)
        self.tried.add(key)
        self.captures += 1
        self.seconds += (seconds := time.perf_counter() - started)
        if again:
            self.say(f"captured {what} again in {seconds:.1f} s")
        else:
            kept = f"the compiled kernels are kept in {compile_cache()}"
            self.say(f"compiled and captured {what} in {seconds:.1f} s; {kept}")

    def with_room(self, run: Callable[[], None], changes: Any) -> None:
        """Run, and put back what that has changed. Where memory is too short, do it again without the graphs."""
        before = None if changes is None else to_cpu(changes.state_dict(), zeros_as_one=True)
        short = False
        try:
            run()
        except RuntimeError as error:
            short = out_of_memory(error) and self.made and self.gives_way and distributed.number() == 1
            if not short:
                raise
        if short:  # here the error is gone, and what it holds with it
            self.say("memory is short: the CUDA graphs are released, and captured again when they are needed")
            self.release()
            if changes is not None:
                changes.load_state_dict(to_cpu(before))  # a copy: torch's optimizers may keep what they are given
            run()
        if changes is not None:
            changes.load_state_dict(before)

    def forget(self, key: Any) -> None:
        """Part with one graph, and what is known of it."""
        self.tried.discard(key)
        if graph := self.made.pop(key, None):
            graph.graph.reset()

    def release(self) -> None:
        """Part with the graphs and their memory. NCCL cannot end while one of them holds a collective."""
        if not self.made:
            return
        torch.cuda.synchronize()
        while self.made:
            self.made.popitem()[1].graph.reset()
        torch.cuda.empty_cache()


def to_cpu(state: Any, zeros_as_one: bool = False) -> Any:
    """A deep copy of a nested state with its tensors on the CPU. zeros_as_one: of tensors that are all zero, as moments
    are at first, one zero that stands for all."""
    if isinstance(state, torch.Tensor):
        if zeros_as_one and type(state) is torch.Tensor and not state.any():
            return torch.zeros((), dtype=state.dtype).expand(state.shape)
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value, zeros_as_one) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_cpu(value, zeros_as_one) for value in state)
    return state
