"""What is timed, in which order, and what follows from it: parts of `python -m tid.bench`, at hand-computed points."""

import pytest
import torch
from benches import rules, tiny_setup, variant
from tiny import CPU, VOCAB, build, tiny_shape, tiny_step

from tid.benchmark import ceilings, race, variants
from tid.benchmark.ceilings import Ceilings
from tid.benchmark.race import Contender, Result
from tid.config import ConfigError

# ---------------------------------------------------------------------------------------------- ceilings


def test_the_floor_is_products_at_the_ceiling_plus_the_updates_bytes_at_full_bandwidth():
    ceiling = Ceilings(flops_per_second=2e12, matmul_size=1024, bytes_per_second=4e9)
    assert ceiling.floor_ms(flops=6e9, moved_bytes=8e6) == pytest.approx(3.0 + 2.0)
    assert ceiling.share(flops=6e9, ms=12.0) == pytest.approx(0.25)


def test_ceilings_are_the_best_that_was_measured(monkeypatch):
    monkeypatch.setattr(ceilings, "MATMUL_SIZES", {"cpu": (4, 128)})
    monkeypatch.setattr(ceilings, "STREAM_FLOATS", {"cpu": 2**12})
    monkeypatch.setattr(ceilings, "TRIAL_SECONDS", {"cpu": 1e-3})
    found = ceilings.measure_ceilings("fp32", CPU)
    assert found.matmul_size == 128  # a product of 4 x 4 is all overhead
    assert found.flops_per_second > 0 and found.bytes_per_second > 0


# -------------------------------------------------------------------------------------------------- race


class Scripted:
    """A step that writes its name down; `fails` says at which call, and by what."""

    flops, moved_bytes = 10.0, 20.0

    def __init__(self, name: str, calls: list[str], fails: dict[int, Exception] | None = None) -> None:
        self.name, self.calls, self.fails, self.made = name, calls, fails or {}, 0

    def __call__(self) -> None:
        self.calls.append(self.name)
        self.made += 1
        if self.made in self.fails:
            raise self.fails[self.made]


def scripted(name: str, calls: list[str], **more) -> Contender:
    return Contender(name, batch_size=4, context=16, make=lambda: Scripted(name, calls, **more))


def test_steps_have_their_turns_one_after_the_other(monkeypatch):
    monkeypatch.setattr(race, "turn_steps", lambda ms, seconds: 2)
    calls: list[str] = []
    results = race.race([scripted(name, calls) for name in "ABC"], rules(repeats=3))
    assert "".join(calls).endswith("ABC" + 3 * "AABBCC")  # a warm-up step, then rounds of two steps each
    assert [len(r.ms) for r in results] == [3, 3, 3] and not any(r.failed for r in results)
    assert [(r.flops, r.moved_bytes, r.turn_steps) for r in results] == 3 * [(10.0, 20.0, 2)]


def test_ratios_are_paired_within_the_round():
    one, other, broken = (Result(scripted(name, [])) for name in "ABC")
    one.ms, other.ms, broken.failed = [2.0, 4.0, 8.0], [3.0, 4.0, 16.0], "no"
    race.compare([broken, one, other])
    assert one.ratios == [1.0, 1.0, 1.0] and one.extra_ms == [0.0, 0.0, 0.0]
    assert other.ratios == [1.5, 1.0, 2.0] and other.extra_ms == [1.0, 0.0, 8.0]
    assert broken.ratios is None
    assert other.median_ms == 4.0 and other.tokens_per_second == pytest.approx(4 * 16 / 0.004)


@pytest.mark.parametrize("call", [1, 4, 6, 8])  # the first, in the warm-up, before the first round, in a round
def test_a_step_that_fails_is_a_result_with_the_reason_and_the_others_are_timed(call):
    calls: list[str] = []
    broken = scripted("B", calls, fails={call: ValueError("no such thing\nmore")})
    found = race.race([scripted("A", calls), broken, scripted("C", calls)], rules(repeats=3))
    assert [r.failed for r in found] == [None, "ValueError: no such thing", None]
    assert len(found[0].ms) == len(found[2].ms) == 3 and found[2].ratios is not None


def test_what_cannot_be_built_is_a_result_with_the_reason():
    def make():
        raise ConfigError("drop_mode Skip leaves no layer to skip")

    (found,) = race.race([Contender("skip", 4, 16, make)], rules())
    assert found.failed == "drop_mode Skip leaves no layer to skip" and found.ms == []


def test_what_does_not_fit_beside_the_others_is_timed_by_itself_afterwards():
    calls: list[str] = []
    built: list[str] = []

    def make():
        built.append("B")
        if len(built) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return Scripted("B", calls)

    found = race.race([scripted("A", calls), Contender("B", 4, 16, make)], rules(repeats=2))
    assert (found[1].alone, found[1].failed, len(found[1].ms), found[1].ratios) == (True, None, 2, None)
    assert found[0].ratios == [1.0, 1.0] and "".join(calls).rstrip("B").endswith("A")


def test_what_runs_out_of_memory_while_it_is_timed_is_timed_by_itself_afterwards():
    fails = [{8: torch.OutOfMemoryError("CUDA out of memory.")}, {}]
    contender = Contender("B", 4, 16, lambda: Scripted("B", [], fails.pop(0)))
    found = race.race([scripted("A", []), contender], rules(repeats=3))
    assert (found[1].alone, found[1].failed, len(found[1].ms)) == (True, None, 3) and not fails


def test_running_out_of_memory_is_recognised_behind_what_it_broke():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except torch.OutOfMemoryError:
            raise RuntimeError("CUDA error: operation failed during capture")  # noqa: B904
    except RuntimeError as error:
        assert race.reason(error) == "out of memory"
    assert race.reason(RuntimeError("")) == "RuntimeError"


def test_a_turn_in_which_something_was_captured_is_timed_anew():
    class Capturing:
        graphs, calls = 1, 0

        def __call__(self):
            self.calls += 1
            self.graphs += self.calls == 2

    step = Capturing()
    race.turn(step, 3, CPU)
    assert step.calls == 6
    race.turn(step, 3, CPU)
    assert step.calls == 9


# ---------------------------------------------------------------------------------------------- variants


def test_every_combination_is_there_and_the_baseline_once_per_optimizer():
    scorers = {name: build("scorer", name) for name in ("none", "random", "entropy")}
    modes = {name: build("drop_mode", name) for name in ("zero", "hide")}
    optims = {name: build("optim", name) for name in ("adamw", "muon")}
    found = variants.variants(scorers, modes, optims, 8)
    labels = ["no drop", "random, zero", "random, hide", "entropy, zero", "entropy, hide"]
    assert [(v.optim_name, v.label) for v in found] == [(optim, label) for optim in optims for label in labels]


@pytest.mark.parametrize(("optim", "bytes_per_weight"), [("adamw", 28), ("muon", None)])
def test_an_update_moves_28_bytes_per_weight_with_adamw(optim, bytes_per_weight):
    step = tiny_step(optim=optim)
    step(0)
    named = dict(step.model.named_parameters())
    moved = variants.update_bytes(step.state_dict())
    if bytes_per_weight:
        expected = sum(28 * p.numel() + 2 * 4 for p in named.values())  # and each one's counter
    else:  # one moment for the matrices of the blocks
        hidden = [name for name, p in named.items() if p.ndim == 2 and "embed" not in name]
        expected = sum(20 * p.numel() if name in hidden else 28 * p.numel() + 8 for name, p in named.items())
    assert moved == expected


def test_quantised_state_counts_as_it_is_stored():
    subclass = pytest.importorskip("torchao.optim.subclass_8bit")
    state = subclass.OptimState8bit.zeros((64, 256), signed=True, block_size=256)
    assert state.numel() * state.element_size() == 4 * 64 * 256  # what it passes itself off as
    assert variants.tensor_bytes({"m": [state]}) == 64 * 256 + 64 * 4 + 256 * 4  # codes, scales, the map


def test_flops_are_those_that_the_step_counts():
    setup = tiny_setup()
    steps = [variants.OurStep(setup, v, "auto") for v in (variant("none"), variant("entropy"))]
    for step in steps * 2:
        step()
    plain = 4 * 16 * tiny_shape().flops_per_token(16)
    assert steps[0].flops == pytest.approx(plain)
    assert steps[1].flops == pytest.approx(plain * 4 / 3)  # a forward pass more
    assert steps[0].scoring_ms() is None and steps[1].scoring_ms() > 0


def test_components_that_make_no_sense_together_are_refused():
    with pytest.raises(ConfigError, match="leaves no layer to skip"):
        variants.train_step(tiny_setup(shape=tiny_shape(num_layers=2)), variant(mode="skip"))


def test_made_up_text_is_of_the_vocabulary_and_its_documents_end():
    text = variants.made_up_text(10_000, VOCAB, seed=0)
    assert text.min() == 0 and text.max() == VOCAB - 1 and len(text) == 10_000
    assert (text[::400] == VOCAB - 1).all()
    assert (text == variants.made_up_text(10_000, VOCAB, seed=0)).all()
    assert (text != variants.made_up_text(10_000, VOCAB, seed=1)).any()
