import pytest
import torch
from tiny import assert_same, build, options, run, tiny_model, tiny_step, weights

from tid.config import ConfigError

LOW_BITS = ["adamw_8bit", "adamw_4bit"]
every = pytest.mark.parametrize("option", options("optim"))


def named(model, extra: bool = True) -> list:
    vector = [("mask_vector", torch.nn.Parameter(torch.zeros(32)))] if extra else []
    return [*model.named_parameters(), *vector]


def built(option: str, parameters: list) -> list:
    if option in LOW_BITS:
        pytest.importorskip("torchao")
    return build("optim", option).build(parameters)


@every
def test_every_parameter_is_in_one_group_and_only_matrices_decay(model, option):
    parameters = named(model)
    groups = [group for optimizer in built(option, parameters) for group in optimizer.param_groups]
    listed = [p for group in groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for _, p in parameters}
    assert len(listed) == len(parameters)
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)


@every
def test_learning_rate_is_a_tensor_that_the_step_can_change(model, option):
    for optimizer in built(option, named(model)):
        assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)


def test_muon_takes_the_matrices_of_the_blocks(model):
    parameters = dict(named(model))
    muon, adamw = build("optim", "muon").build(list(parameters.items()))
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in parameters.items() if id(p) in by_muon}
    assert names == {name for name in parameters if name.endswith("proj.weight")}
    assert len(names) == 3 * 7
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(parameters) - len(names)


@every
def test_learning_rate_by_hand(option):
    optim = build("optim", option, lr=1e-3, final_lr_ratio=0.1, warmup_steps=10)
    points = {0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 60: 5.5e-4, 110: 1e-4, 500: 1e-4}
    assert {step: optim.lr_at(step, 110) for step in points} == pytest.approx(points)
    third = 10 + 100 // 4  # a quarter of a cosine's half: (1 + √½) / 2 of the way
    assert optim.lr_at(third, 110) == pytest.approx(1e-4 + 9e-4 * (1 + 0.5**0.5) / 2)


@every
def test_learning_rate_rises_then_falls_and_stays_positive(option):
    optim = build("optim", option, warmup_steps=20)
    rates = [optim.lr_at(step, 100) for step in range(100)]
    assert all(a < b for a, b in zip(rates[:19], rates[1:20], strict=True))
    assert all(a >= b for a, b in zip(rates[19:], rates[20:], strict=False))
    assert max(rates) == optim.lr
    assert min(rates[20:]) >= optim.lr * optim.final_lr_ratio
    assert rates[-1] == pytest.approx(optim.lr * optim.final_lr_ratio, rel=0.01)


def test_odd_warm_ups():
    assert build("optim", "adamw", lr=1.0, warmup_steps=0).lr_at(0, 10) == 1.0
    short = build("optim", "adamw", lr=1.0, warmup_steps=100)
    assert [short.lr_at(step, 10) for step in (0, 9)] == [0.01, 0.1]


def test_the_step_follows_the_learning_rate_table():
    step = tiny_step(optim=build("optim", "muon", lr=2e-3, warmup_steps=4), total_steps=8)
    for number in range(8):
        step(number)
        for optimizer in step.updating.optimizers:
            for group in optimizer.param_groups:
                assert group["lr"].item() == pytest.approx(step.optim.lr_at(number, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0), ("lr", -1.0), ("beta1", 1.0), ("clip_norm", 0), ("final_lr_ratio", 2), ("warmup_steps", -1)],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"optim.{field}"):
        build("optim", "adamw", **{field: value})


def test_weight_decay_shrinks_matrices_only():
    decays = {}
    for weight_decay in (0.0, 1.0):
        optim = build("optim", "adamw", lr=1e-2, warmup_steps=0, weight_decay=weight_decay)
        decays[weight_decay] = weights(run(tiny_step(scorer="none", optim=optim, total_steps=1), 1))
    start = dict(tiny_model(seed=3).named_parameters())
    for name, weight in decays[0.0].items():
        expected = weight - 1e-2 * start[name].detach() if weight.ndim == 2 else weight
        torch.testing.assert_close(decays[1.0][name], expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("option", LOW_BITS)
def test_low_bit_moments_train_like_adamw(option):
    pytest.importorskip("torchao")
    shape = {"num_layers": 1, "hidden_size": 128, "intermediate_size": 128}

    def start(optim: str):
        return tiny_step(optim=optim, model=tiny_model(3, **shape), scorer="none", total_steps=6)

    step, reference = (run(start(name), 6) for name in (option, "adamw"))
    torch.testing.assert_close(step.metrics[:6, 0], reference.metrics[:6, 0], atol=0.05, rtol=0.02)
    assert step.metrics[5, 0] < step.metrics[0, 0]
    kinds = {type(v).__name__ for s in step.updating.optimizers[0].state.values() for v in s.values()}
    assert any("8bit" in kind or "4bit" in kind for kind in kinds)
    state = step.updating.optimizers[0].state_dict()
    again = start(option)
    again.load_state_dict(step.state_dict())
    assert_same(weights(again), weights(step))
    assert again.updating.optimizers[0].state_dict()["state"].keys() == state["state"].keys()
