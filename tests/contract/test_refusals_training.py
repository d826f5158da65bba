"""Bad inputs of training: schedules, data and places are refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import Refusal, check_refusal

from abstraction.models import MLP
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.training.interchange import InterchangeLoss, LabelledPairs, check_depth

MODEL = MLP(2, 4, 2, 4)
PARAMS = MODEL.init(jax.random.key(0))
OPTIMIZER = optax.adam(1e-2)
DATA = {"x": np.ones((8, 3), np.float32), "y": np.ones(8, np.float32)}
KEY = jax.random.key(0)


def _loss(params, batch, context):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def _fit(schedule=None, data=None, key=KEY, optimizer=OPTIMIZER, start=None, **watch):
    start = {"w": jnp.zeros(3)} if start is None else start
    data = DATA if data is None else data
    return fit(key, _loss, start, optimizer, data, schedule or Schedule(4, 2), Watch(**watch))


def _interchange(**change):
    given = {"model": MODEL, "tap": "hidden", "depth": 0, "loss": lambda outputs, labels: outputs[:, 0]} | change
    inputs, labels = np.ones((3, 2), np.float32), np.zeros(3, np.int32)
    return InterchangeLoss(**given)(PARAMS, LabelledPairs(inputs, inputs, labels, labels, labels), 1.0)


ROWS = [
    Refusal("no batch", lambda: Schedule(0, 1), "batch size 0, expected at least 1"),
    Refusal("a batch below 0", lambda: Schedule(-4, 1), "batch size -4"),
    Refusal("half a batch", lambda: Schedule(1.5, 1), "batch size 1.5"),
    Refusal("a batch that is true", lambda: Schedule(True, 1), "batch size True"),
    Refusal("a batch in words", lambda: Schedule("all", 1), "batch size 'all'"),
    Refusal("no epochs", lambda: Schedule(1, 0), "epochs 0, expected at least 1"),
    Refusal("epochs of NaN", lambda: Schedule(1, np.nan), "epochs nan"),
    Refusal("endless epochs", lambda: Schedule(1, np.inf), "epochs inf"),
    Refusal("a stop by name", lambda: Schedule(1, 1, "loss"), "stopping rule 'loss', expected Stop"),
    Refusal("a stop of no epochs", lambda: Schedule(1, 1, Stop("a", 1.0, 0)), "epochs of a stopping rule 0"),
    Refusal("a stop at NaN", lambda: Schedule(1, 1, Stop("a", np.nan, 1)), "target of 'a' nan, expected"),
    Refusal("a stop in words", lambda: Schedule(1, 1, Stop("a", "best", 1)), "target of 'a' 'best'"),
    Refusal("a batch past the data", lambda: _fit(Schedule(9, 1)), "batch size 9, expected between 1 and the 8 rows"),
    Refusal("rows that disagree", lambda: _fit(data=DATA | {"y": np.ones(5)}), "share one leading axis"),
    Refusal("no data", lambda: _fit(data={}), "expected arrays that share one leading axis"),
    Refusal("a number as data", lambda: _fit(data=1.0), "share one leading axis"),
    Refusal("a stop on nothing", lambda: _fit(Schedule(4, 1, Stop("score", 1.0, 1))), "on 'score', expected one of"),
    Refusal("a seed as key", lambda: _fit(key=0), "key 0, expected one typed key"),
    Refusal("two keys", lambda: _fit(key=jax.random.split(KEY)), "expected one typed key"),
    Refusal(
        "an unknown tap", lambda: check_depth(MODEL, "hiden", 0), "tap 'hiden', expected one that the model resumes"
    ),
    Refusal("no tap to resume from", lambda: check_depth(MODEL, "inputs", 0), "tap 'inputs', expected"),
    Refusal("a depth past the end", lambda: check_depth(MODEL, "hidden", 2), "depth 2 of 'hidden', expected 0 to 1"),
    Refusal("a depth below 0", lambda: check_depth(MODEL, "hidden", -1), "depth -1 of 'hidden'"),
    Refusal("half a depth", lambda: check_depth(MODEL, "hidden", 0.5), "depth 0.5 of 'hidden'"),
    Refusal("a depth that is true", lambda: check_depth(MODEL, "hidden", True), "depth True of 'hidden'"),
    Refusal("a loss at no depth", lambda: _interchange(depth=2), "depth 2 of 'hidden', expected 0 to 1"),
    Refusal("a loss at no tap", lambda: _interchange(tap="x"), "tap 'x', expected one that the model resumes from"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused(row):
    check_refusal(row)


@pytest.mark.parametrize(
    "diverge",
    [
        lambda: _fit(data=DATA | {"x": DATA["x"] * np.nan}),
        lambda: _fit(start={"w": jnp.full(3, jnp.nan)}),
        lambda: _fit(optimizer=optax.sgd(1e30)),
    ],
    ids=["data of NaN", "weights of NaN", "an endless rate"],
)
def test_a_training_that_diverges_ends_in_its_first_epoch(diverge):
    with pytest.raises(FloatingPointError, match=r"a loss of .* in epoch 1: the training diverged, expected fin"):
        diverge()


def test_a_schedule_is_a_value():
    assert Schedule(4, 2) == Schedule(4, 2)
    assert dataclasses.replace(Schedule(4, 2), epochs=3) == Schedule(4, 3)
    with pytest.raises(ValueError, match="epochs 0"):
        dataclasses.replace(Schedule(4, 2), epochs=0)
