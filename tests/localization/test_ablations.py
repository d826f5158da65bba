"""What replaces a state: padding is in no mean, and another pair is never the pair itself."""

import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Repeats, record
from abstraction.localization.ablations import replaced_sources
from abstraction.models import Decoder, Network


def test_the_mean_of_a_position_is_over_the_prompts_that_reach_it(rng):
    decoder = Decoder(FAMILIES["llama"])
    network = Network(decoder, drawn(decoder))
    tokens = padded(rng, 6, 5, 2)
    causal = causal_model(("row",), "y", y=lambda row: row % 2)
    rows = {"row": np.arange(6)}
    bank = label_pairs(causal, rows, rows, variables=("y",), role="fit")
    recorded = record(network, lambda setting: tokens[setting["row"]], bank, tap="mlp_output")
    states = np.asarray(recorded.runs.base["mlp_output"])
    found = np.asarray(replaced_sources(network, recorded, "mean", Repeats()).runs.source["mlp_output"])
    for position in range(5):
        there = tokens[:, position] >= 0
        wanted = states[:, there, position].mean(axis=1)
        np.testing.assert_allclose(found[:, 0, position], wanted, rtol=1e-5, atol=1e-6)
    one = label_pairs(causal, {"row": np.arange(1)}, {"row": np.arange(1)}, variables=("y",), role="fit")
    alone = record(network, lambda setting: tokens[setting["row"]], one, tap="mlp_output")
    with pytest.raises(ValueError, match="got a bank of one pair to resample from"):
        replaced_sources(network, alone, "resample", Repeats())
    shuffled = replaced_sources(network, recorded, "resample", Repeats()).runs.source["mlp_output"]
    assert (np.abs(np.asarray(shuffled) - states).max(axis=(0, 2, 3)) > 0).all()
