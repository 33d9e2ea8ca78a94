"""What is not finite never reaches the weights."""

import pytest
import torch
from tiny import assert_same, optimizer_values, run, tiny_model, tiny_step, weights

from tid.drop_modes import DropMode, Loss, plain_loss

OPTIMIZERS = ["adamw", "muon"]


class Broken(DropMode):
    """The plain loss, until at call number `at` (and from there on, `for_good`) something goes wrong.

    what: "loss" makes the objective NaN; "gradient" leaves it finite and makes its gradient NaN.
    """

    def __init__(self, at: int, what: str = "loss", for_good: bool = False) -> None:
        self.at, self.what, self.for_good, self.calls = at, what, for_good, 0

    def loss(self, model, batch, learned) -> Loss:
        loss, call = plain_loss(model, batch.tokens, batch.targets), self.calls
        self.calls += 1
        if call != self.at and not (self.for_good and call > self.at):
            return loss
        if self.what == "loss":
            return Loss(loss.objective * torch.nan, loss.nats)
        nothing = (loss.objective - loss.objective).sqrt()  # the slope of √ at 0 is infinite
        return Loss(loss.objective + nothing, loss.nats)


@pytest.mark.parametrize("for_good", [True, False])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_loss_that_is_not_finite_never_reaches_the_weights(optim, what, for_good):
    step = run(tiny_step(mode=Broken(3, what, for_good), optim=optim), 3)
    before, moments = weights(step), optimizer_values(step)
    assert step.bad_step == -1
    for number in range(3, 7):  # even if the later steps are sound, the run is over
        step(number)
        assert step.bad_step == 3
        assert_same(weights(step), before)
        assert_same(optimizer_values(step), moments)


def test_a_loss_that_is_not_finite_stops_an_fp16_run_too():
    step = run(tiny_step(mode=Broken(at=2), precision="fp16", model=tiny_model(init_std=0.02)), 2)
    before = weights(step)
    run(step, 2, first=2)
    assert step.bad_step == 2
    assert_same(weights(step), before)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_fp16_overflow_skips_the_step_and_halves_the_scale(optim):
    step = run(tiny_step(precision="fp16", optim=optim, model=tiny_model(init_std=0.02)), 2)
    before, moments = weights(step), optimizer_values(step)
    step.updating.scale.fill_(2.0**40)
    step(2)
    assert step.bad_step == -1
    assert step.updating.scale == 2.0**39
    assert_same(weights(step), before)
    assert_same(optimizer_values(step), moments)
    step.updating.scale.fill_(2.0**8)
    step(3)
    assert step.bad_step == -1
    assert not torch.equal(weights(step)["embed_tokens.weight"], before["embed_tokens.weight"])


def test_fp16_takes_its_own_scale_and_none_of_another_precision():
    def fresh(precision):
        return tiny_step(precision=precision, model=tiny_model(init_std=0.02))

    usual, saved = fresh("fp16").updating.scale.item(), fresh("fp32").state_dict()
    step = fresh("fp16")
    step.load_state_dict(saved)
    assert step.updating.scale.item() == usual > 1
    step.updating.scale.fill_(2.0**9)
    again = fresh("fp16")
    again.load_state_dict(step.state_dict())
    assert again.updating.scale.item() == 2.0**9


def test_fp16_that_overflows_at_any_scale_is_bad():
    """Else the scale falls to zero and the run skips every step to its end, in silence."""
    step = run(tiny_step(mode=Broken(0, "gradient", for_good=True), precision="fp16", total_steps=60), 60)
    assert step.bad_step >= 0
