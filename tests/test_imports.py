"""Imports point one way: train → loop → {step, validation, …} → {model, dropout, …} → {scorers, …}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # top first: nothing here may reach a module of a line above its own, not even through other modules
    {"tid.loop"},
    {"tid.step", "tid.validation", "tid.checkpoint", "tid.tracking", "tid.logs"},
    {"tid.update", "tid.flat", "tid.twin", "tid.model", "tid.dropout", "tid.drop_modes", "tid.optim", "tid.data"},
    {"tid.scorers", "tid.selectors", "tid.schedules", "tid.randomness"},
    {"tid.capture", "tid.timing", "tid.precision", "tid.component", "tid.distributed", "tid.torchrun", "tid.processes"},
]
COMMAND_LINE = {"tid.cli", "tid.overrides", "tid.sweep.grid"}
CONFIGURATION = COMMAND_LINE | {"tid.config", "tid.messages"}


def parse() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    trees = {}
    for path in sorted((ROOT / "tid").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


TREES = parse()
ENTRY_POINTS = {
    name
    for name, tree in TREES.items()
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
}


def imported(tree: ast.AST, at_import: bool = False) -> set[str]:
    """Dotted names imported anywhere in a module; with `at_import` only those that importing it imports."""
    names, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write absolute imports"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return names


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def reached(start: str, at_import: bool = False) -> set[str]:
    """Modules of ours that `start` imports, itself included, directly or through others; with `at_import`
    those that are loaded with it, the __init__ of each one's package too."""
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        below = imported(TREES[name], at_import) & TREES.keys() - {"tid"}
        waiting += below
        if at_import:
            waiting += {child.rpartition(".")[0] for child in below} - {"tid"}
    return seen


def is_of(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_the_package_was_found():
    assert {"tid.train", "tid.data.batches", "tid.scorers"} <= TREES.keys()
    assert "tid.train" in ENTRY_POINTS
    assert "tid.step" in reached("tid.loop")
    assert "torch" in packages(imported(TREES["tid.model"]))


@pytest.mark.parametrize("name", TREES)
def test_no_module_reaches_a_layer_above_its_own(name):
    rank = next((i for i, layer in enumerate(LAYERS) if is_of(name, layer)), None)
    if rank is None and (name in ENTRY_POINTS | COMMAND_LINE or is_of("tid.loop", reached(name))):
        return  # above them all
    above = set().union(*LAYERS[: len(LAYERS) if rank is None else rank])
    others = {other for other in reached(name) - {name} if is_of(other, above)}
    assert not others or rank is None, f"{name} reaches up to {sorted(others)}"


@pytest.mark.parametrize("name", TREES)
def test_no_module_imports_itself_through_others(name):
    below = imported(TREES[name]) & TREES.keys() - {"tid", name}
    circle = [other for other in below if name in reached(other)]
    assert not circle, f"{name} and {circle} import each other"


@pytest.mark.parametrize("name", TREES)
def test_heavy_packages_are_imported_in_one_place(name):
    found = packages(imported(TREES[name]))
    assert "hydra" not in found or name in ENTRY_POINTS | COMMAND_LINE
    assert not found & {"wandb", "trackio"} or name == "tid.tracking"


@pytest.mark.parametrize("name", sorted(TREES.keys() - ENTRY_POINTS - CONFIGURATION))
def test_below_an_entry_point_nobody_sees_cfg(name):
    assert "omegaconf.DictConfig" not in imported(TREES[name])
    arguments = [node.arg for node in ast.walk(TREES[name]) if isinstance(node, ast.arg)]
    assert "cfg" not in arguments


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS | CONFIGURATION))
def test_the_command_line_answers_without_torch(name):
    """--help and --cfg, and every refusal of a wrong setting, must not wait for torch."""
    for module in reached(name, at_import=True):
        heavy = packages(imported(TREES[module], at_import=True)) & {"torch", "datasets", "wandb"}
        assert not heavy, f"{name} imports {module}, which imports {heavy}"


def test_nothing_in_the_package_imports_tests():
    for name, tree in TREES.items():
        assert not packages(imported(tree)) & {"tests", "tiny", "pytest", "conftest"}, name


def test_importing_the_package_loads_no_compiler():
    """It takes a second, and most processes compile nothing."""
    modules = ["tid.job", "tid.inspect", "tid.load", "tid.generation", "tid.evaluation", "tid.sweep.conduct"]
    look = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules}]\n"
        "from tid.model import GPT; GPT(1, 8, 1, 8, 50, 1e4, 1e-5, 0.02, None).build(seed=0); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tid.score_cache" in loaded.split() and "torch._dynamo" not in loaded.split()


@pytest.mark.parametrize("fast", [False, True])
def test_the_compiler_is_loaded_beside_what_is_done_meanwhile(fast):
    look = (
        "import sys; from tid.capture import loading_compiler; before = set(sys.modules)\n"
        f"with loading_compiler({fast}): pass\n"
        "print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "torch._dynamo" in loaded.split() and ("torch._inductor.compile_fx" in loaded.split()) == fast
