"""Bad inputs of the networks: refused by name, before anything runs; join by adding a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.interventions import Add
from abstraction.models import GRU, MLP, Activation, Decoder, DecoderConfig, Dense, Network, Sequential
from abstraction.models.decoder_unrolled import stacked_decoder, unrolled_decoder
from abstraction.models.layers import AveragePool, BatchNorm, Convolution, Flatten, GlobalAverage, MaxPool
from abstraction.models.network import check_network
from abstraction.models.unrolling import stacked

pytestmark = pytest.mark.usefixtures("unchecked")

KEY = jax.random.key(0)
MLP_ = MLP(3, 4, 2, 2)
GRU_ = GRU(2, 3, 4)
CHAIN = Sequential((5,), (Dense("one", 6), Activation("hidden"), Dense("out", 3)))
CONV = Sequential((6, 6, 2), (Convolution("mix", 3, (2, 2)), Activation("act"), Flatten("flat"), Dense("out", 2)))
PARAMS = {model: model.init(KEY) for model in (MLP_, GRU_, CHAIN, CONV)}
DECODER = Decoder(DecoderConfig(vocabulary=7, width=8, depth=2, heads=2, kv_heads=1, head_size=4, hidden=12))
BLOCKS = unrolled_decoder(DECODER, DECODER.init(KEY))
ROWS = {MLP_: np.zeros((2, 3), np.float32), GRU_: np.zeros((2, 4, 2), np.float32), CHAIN: np.zeros((2, 5), np.float32)}
NAN = {"kernel": np.zeros((6, 3)), "bias": np.full(3, np.nan)}
INFINITE = {"kernel": np.full((3, 1), np.inf), "bias": np.zeros(1)}


def _apply(model, inputs=None, **options):
    inputs = ROWS[model] if inputs is None else inputs
    return lambda: model.apply(PARAMS[model], inputs, **options)


def _resume(model, tap, depth, *shape):
    return lambda: model.resume(
        PARAMS[model], tap, depth, jnp.zeros(shape), inputs=ROWS[model], states=jnp.zeros((1, *shape))
    )


def _chain(*layers, inputs=(6, 6, 2)):
    return lambda: Sequential(inputs, layers).init(KEY)


def _narrowed(model, tap, kept):
    return lambda: model.narrowed(PARAMS[model], tap, kept)


def _network(model, **arrays):
    return lambda: check_network(Network(model, {**PARAMS[model], **arrays}))


ROWS_OF_SIZES = [
    Refusal("mlp of no inputs", lambda: MLP(0, 4, 2, 2).init(KEY), "at least 1"),
    Refusal("mlp of no depth", lambda: MLP(3, 4, 0, 2).init(KEY), "at least 1"),
    Refusal("mlp of half a unit", lambda: MLP(3, 4.5, 2, 2).init(KEY), "at least 1"),
    Refusal("mlp of an unknown function", lambda: MLP(3, 4, 2, 2, "swish").init(KEY), "swish"),
    Refusal("gru of a negative width", lambda: GRU(2, -3, 4).init(KEY), "at least 1"),
    Refusal("gru of a width as a word", lambda: GRU(2, "3", 4).init(KEY), "at least 1"),
    Refusal("chain of no layers", _chain(), "at least one"),
    Refusal("chain of no inputs", _chain(Dense("a", 3), inputs=()), "sizes of at least 1"),
    Refusal("chain of inputs of size 0", _chain(Dense("a", 3), inputs=(0,)), "sizes of at least 1"),
    Refusal("layers of one name", _chain(Dense("a", 3), Dense("a", 2)), "distinct"),
    Refusal("a layer called inputs", _chain(Dense("inputs", 3)), "none of"),
    Refusal("a layer called logits", _chain(Dense("logits", 3)), "none of"),
    Refusal("dense of no features", _chain(Dense("a", 0)), "at least one feature"),
    Refusal("convolution of no channels", _chain(Convolution("a", 0)), "at least one feature"),
    Refusal("convolution of unknown padding", _chain(Convolution("a", 3, padding="ZERO")), "ZERO"),
    Refusal("convolution wider than its input", _chain(Convolution("a", 3, (9, 9))), "at least"),
    Refusal("convolution of no step", _chain(Convolution("a", 3, strides=(0, 1))), "positive steps"),
    Refusal("convolution without positions", _chain(Convolution("a", 3), inputs=(5,)), "positional axes"),
    Refusal("pool wider than its input", _chain(MaxPool("a", (9, 9))), "at least"),
    Refusal("pool of no step", _chain(AveragePool("a", (2, 2), (0, 0))), "positive steps"),
    Refusal("average of no positions", _chain(GlobalAverage("a"), inputs=(5,)), "positions to average over"),
    Refusal("an unknown function", _chain(Activation("a", "swish")), "swish"),
]
ROWS_OF_RUNS = [
    Refusal("mlp: inputs of another width", _apply(MLP_, np.zeros((2, 4), np.float32)), r"\(N, 3\)"),
    Refusal("mlp: inputs of no width", _apply(MLP_, np.zeros(3, np.float32)), r"\(N, 3\)"),
    Refusal("gru: another number of steps", _apply(GRU_, np.zeros((2, 5, 2), np.float32)), r"\(N, 4, 2\)"),
    Refusal("gru: no steps", _apply(GRU_, np.zeros((2, 2), np.float32)), r"\(N, 4, 2\)"),
    Refusal("chain: inputs of another width", _apply(CHAIN, np.zeros((2, 6), np.float32)), r"\(N, 5\)"),
    Refusal("chain: inputs with positions", _apply(CHAIN, np.zeros((2, 3, 5), np.float32)), r"\(N, 5\)"),
    Refusal("a record of an unknown tap", _apply(MLP_, record=("nope",)), "nope"),
    Refusal("an edit of an unknown tap", _apply(CHAIN, edits={"nope": Add(jnp.zeros((1, 6)))}), "nope"),
    Refusal("an edit without the axis of depth", _apply(CHAIN, edits={"hidden": Add(jnp.zeros(6))}), "depth axis"),
    Refusal("an edit of another depth", _apply(MLP_, edits={"hidden": Add(jnp.zeros((3, 4)))}), "depth axis of 2"),
    Refusal("an edit of the outputs without depth", _apply(MLP_, edits={"logits": Add(jnp.zeros(2))}), "depth axis"),
    Refusal("an edit of a scalar", _apply(GRU_, edits={"hidden": Add(jnp.zeros(()))}), "depth axis of 4"),
    Refusal("resume from the inputs", _resume(CHAIN, "inputs", 0, 2, 5), "one of"),
    Refusal("resume from an unknown tap", _resume(MLP_, "nope", 0, 2, 4), "one of"),
    Refusal("resume from a gru's inputs", _resume(GRU_, "inputs", 0, 2, 2), "one of"),
    Refusal("resume past the end", _resume(MLP_, "hidden", 2, 2, 4), "0 to 1"),
    Refusal("resume from depth -1", _resume(GRU_, "hidden", -1, 2, 3), "0 to 3"),
    Refusal("resume at depth 1 of a tap that occurs once", _resume(CHAIN, "hidden", 1, 2, 6), "0 to 0"),
    Refusal("resume with another width", _resume(CHAIN, "hidden", 0, 2, 7), "width 6"),
    Refusal("resume with several depths", _resume(MLP_, "hidden", np.array([0, 1]), 2, 4), "0 to 1"),
]
ROWS_OF_WIRING = [
    Refusal("units of the inputs", lambda: CHAIN.consumers("inputs"), "hidden"),
    Refusal("units of the outputs", lambda: GRU_.consumers("logits"), "hidden"),
    Refusal("units of flattened positions", lambda: CONV.consumers("flat"), "flat"),
    Refusal("units that only the output reads", lambda: CHAIN.consumers("out"), "output"),
    Refusal("a negative unit", _narrowed(CHAIN, "hidden", [-1, 2]), "0 to 5"),
    Refusal("a unit past the end", _narrowed(CHAIN, "hidden", [0, 6]), "0 to 5"),
    Refusal("a unit kept twice", _narrowed(GRU_, "hidden", [1, 1]), "each once"),
    Refusal("units out of order", _narrowed(GRU_, "hidden", [2, 0]), "sorted"),
    Refusal("no unit kept", _narrowed(CHAIN, "hidden", []), "sorted"),
    Refusal("units as fractions", _narrowed(CHAIN, "hidden", [0.5, 1.5]), "integers"),
    Refusal("units as a mask", _narrowed(CHAIN, "hidden", [True] * 6), "integers"),
    Refusal("a block that is not there", lambda: BLOCKS[0].consumers("mlp_product9"), "one of"),
    Refusal("the residual stream of a decoder", lambda: BLOCKS[0].consumers("block_output0"), "one of"),
    Refusal("half a head", lambda: BLOCKS[0].narrowed(BLOCKS[1], "head_output0", [0, 1, 2]), "whole heads"),
    Refusal("a head past the end", lambda: BLOCKS[0].narrowed(BLOCKS[1], "head_output0", [8, 9, 10, 11]), "0 to 7"),
    Refusal("heads of the MLP", lambda: BLOCKS[0].head_groups("mlp_product0"), "head_output0"),
    Refusal("a stack of blocks that differ", lambda: stacked_decoder(*_uneven()), "one shape"),
    Refusal("a stack of layers that differ", lambda: stacked(CONV, PARAMS[CONV]), "one width"),
    Refusal("torch arrays that are missing", lambda: CHAIN.params_from_torch({}), "missed"),
    Refusal("torch arrays for a convolution", lambda: CONV.params_from_torch({}), "dense"),
    Refusal("torch arrays of another shape", lambda: GRU_.params_from_torch(_torch(5)), "shape"),
    Refusal("torch arrays of another name", lambda: GRU_.params_from_torch({"cell.bias": np.zeros(3)}), "unknown"),
]
ROWS_OF_WEIGHTS = [
    Refusal("weights of another width", _network(CHAIN, one={"kernel": np.ones((5, 7)), "bias": np.ones(7)}), "one"),
    Refusal("weights of another model", lambda: check_network(Network(CHAIN, PARAMS[MLP_])), "expected"),
    Refusal("weights that are not numbers", _network(CHAIN, out=NAN), "finite"),
    Refusal("weights that are infinite", _network(GRU_, step=INFINITE), "finite"),
    Refusal("weights that are missing", lambda: check_network(Network(CHAIN, {})), "missing"),
]


def _uneven():
    model, params = BLOCKS
    return model.narrowed(params, "mlp_product0", [0, 1])


def _torch(width):
    shapes = {"cell.weight_ih": (3 * width, 2), "cell.bias_ih": (3 * width,), "cell.weight_hh": (3 * width, width)}
    shapes |= {"cell.bias_hh": (3 * width,), "sum_head.weight": (1, width), "sum_head.bias": (1,)}
    shapes |= {"final_carry_head.weight": (1, width), "final_carry_head.bias": (1,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


ROWS_ALL = [*ROWS_OF_SIZES, *ROWS_OF_RUNS, *ROWS_OF_WIRING, *ROWS_OF_WEIGHTS]


@pytest.mark.parametrize("row", ROWS_ALL, ids=lambda row: row.name)
def test_bad_inputs_of_networks_are_refused(row):
    check_refusal(row)


def test_a_layer_of_statistics_keeps_its_shape():
    assert BatchNorm("norm").output_shape((3, 4)) == (3, 4)
