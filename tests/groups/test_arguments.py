"""Arguments of optimizers that no run can mean, and every default of Keras, which some run does mean."""

import inspect

import pytest

from trainer.errors import UserError
from trainer.groups import optimizers

BAD = {
    "adam(beta_1=2.0)": "from 0 to less than 1",
    "adam(beta_2=1)": "from 0 to less than 1",
    "adam(beta_1=True)": "from 0 to less than 1",
    "adam(epsilon=True)": "0 or more",
    "adam(epsilon=-1e-7)": "0 or more",
    "adam(epsilon='x')": "0 or more",
    "adam(epsilon=None)": "0 or more",
    "adam(amsgrad=1)": "True or False",
    "adam(weight_decay=-1)": "0 or more",
    "adam(weight_decay=True)": "0 or more",
    "adam(weight_decay=1e999)": "finite number, 0 or more",
    "rmsprop(rho=5.0)": "from 0 to less than 1",
    "rmsprop(centered='no')": "True or False",
    "sgd(momentum=2)": "from 0 to 1",
    "sgd(momentum=1j)": "from 0 to 1",
    "sgd(nesterov=None)": "True or False",
    "adagrad(initial_accumulator_value=-0.1)": "0 or more",
    "ftrl(learning_rate_power=0.5)": "0 or less",
    "ftrl(l1_regularization_strength=-1)": "0 or more",
    "adafactor(beta_2_decay=0.8)": "0 or less",
    "adafactor(clip_threshold=0)": "above 0",
    "muon(ns_steps=0)": "a whole number from 1",
    "muon(ns_steps=2.5)": "a whole number from 1",
    "muon(exclude_layers='head')": "a list of parts of names",
    "muon(exclude_layers=['(a+)+b'])": "no repeat of a repeat",
    "muon(muon_a=1e999)": "a finite number",
}


@pytest.mark.parametrize("text", BAD)
def test_what_no_run_can_mean_is_refused(text):
    with pytest.raises(UserError) as caught:
        optimizers.check(text, "--group=x")
    name, _, rest = text.partition("(")
    argument = rest.partition("=")[0]
    assert f"{argument}=" in str(caught.value) and f" of {name}: must be " in str(caught.value)
    assert BAD[text] in str(caught.value)


@pytest.mark.parametrize("name", optimizers.names())
def test_every_default_of_keras_may_be_given(name):
    parameters = inspect.signature(optimizers.names()[name]).parameters.values()
    own = [p for p in parameters if p.name not in optimizers._ELSEWHERE and p.kind is not p.VAR_KEYWORD]
    call = optimizers.check(f"{name}({', '.join(f'{p.name}={p.default!r}' for p in own)})", "--group=x")
    assert call.kwargs == {p.name: p.default for p in own} and own
    assert optimizers.make(call, "--group=x") is not None
