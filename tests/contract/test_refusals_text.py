"""Bad inputs of what reads and reduces text: refused by name; join by adding a row."""

# ruff: noqa: E501 (one row a line)

import dataclasses

import jax
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn
from refusals import Refusal, check_refusal

from abstraction.evaluation.text import dense_text, score_text
from abstraction.models import MLP, Decoder, Network
from abstraction.reduction import METHODS
from abstraction.reduction.blocks import (
    block_budgets,
    block_taps,
    fold_blocks,
    folded_decoder,
    rank_blocks,
    unrolled_network,
)
from abstraction.reduction.text import block_statistics, text_statistics

pytestmark = pytest.mark.usefixtures("unchecked")

DECODER = Decoder(FAMILIES["llama"])
NETWORK = Network(DECODER, drawn(DECODER))
NAMING = dataclasses.replace(NETWORK, model=Decoder(FAMILIES["llama"], answers=((1,), (2,))))
FEW = dataclasses.replace(FAMILIES["llama"], vocabulary=11)
SMALLER = Network(Decoder(FEW), drawn(Decoder(FEW)))
OTHER = Network(MLP(3, 4, 2, 2), MLP(3, 4, 2, 2).init(jax.random.key(0)))
BROKEN = Network(DECODER, jax.tree.map(lambda leaf: leaf * np.nan, NETWORK.params))
TOKENS = np.random.default_rng(0).integers(11, size=(6, 5), dtype=np.int32)
LEFT = np.where(np.arange(5) < 2, np.int32(-1), TOKENS)
KEY = jax.random.key(0)
TEXT = text_statistics(NETWORK, TOKENS, KEY, discrepancies=("logit",))
UNROLLED = unrolled_network(NETWORK)
METHOD = METHODS["flap"]
RANKED = list(rank_blocks(UNROLLED, TEXT, "mlp", METHOD))
EARLY = list(rank_blocks(UNROLLED, TEXT, "mlp", METHODS["obs-affine"], share=0.5))


def _rank(part="mlp", method=METHOD, network=UNROLLED, **options):
    return list(rank_blocks(network, TEXT, part, method, **options))


ROWS = [
    Refusal("a text of another network", lambda: dense_text(OTHER, TOKENS), "network of MLP"),
    Refusal("a text of answers", lambda: dense_text(NAMING, TOKENS), "answer symbols"),
    Refusal("a text of tokens that are none", lambda: dense_text(NETWORK, TOKENS + 30), "token"),
    Refusal("a text padded on the left", lambda: dense_text(NETWORK, LEFT), "padding on the right"),
    Refusal("a text without a next token", lambda: dense_text(NETWORK, TOKENS[:, :1]), "next token"),
    Refusal("a text in batches of none", lambda: dense_text(NETWORK, TOKENS, batch_size=0), "batch size"),
    Refusal("a dense network that breaks", lambda: dense_text(BROKEN, TOKENS), "not finite"),
    Refusal("a score of another vocabulary", lambda: score_text(SMALLER, dense_text(NETWORK, TOKENS)), "one vocabulary"),
    Refusal("statistics of another network", lambda: text_statistics(OTHER, TOKENS, KEY), "network of MLP"),
    Refusal("statistics of tokens that are none", lambda: text_statistics(NETWORK, TOKENS + 30, KEY), "token"),
    Refusal("statistics with a seed for a key", lambda: text_statistics(NETWORK, TOKENS, 0), "key"),
    Refusal("statistics in batches of none", lambda: text_statistics(NETWORK, TOKENS, KEY, batch_size=0), "batch size"),
    Refusal("statistics of no discrepancy", lambda: text_statistics(NETWORK, TOKENS, KEY, discrepancies=()), "one or more"),
    Refusal("statistics of a discrepancy that is not drawn", lambda: text_statistics(NETWORK, TOKENS, KEY, discrepancies=("ce",)), "discrepancy"),
    Refusal("statistics of a network that breaks", lambda: text_statistics(BROKEN, TOKENS, KEY), "not finite"),
    Refusal("a block that is not there", lambda: block_statistics(UNROLLED, TEXT, "mlp_product9", "logit"), "mlp_product9"),
    Refusal("a tap that was not recorded", lambda: block_statistics(UNROLLED, TEXT, "query0", "logit"), "query"),
    Refusal("a curvature that was not drawn", lambda: block_statistics(UNROLLED, TEXT, "mlp_product0", "kl"), "discrepancy"),
    Refusal("blocks of another network", lambda: unrolled_network(OTHER), "network of MLP"),
    Refusal("taps of stacked blocks", lambda: block_taps(NETWORK, "mlp"), "unrolled_network"),
    Refusal("taps of no part", lambda: block_taps(UNROLLED, "norms"), "part"),
    Refusal("a ranking of no part", lambda: _rank("norms"), "part"),
    Refusal("a ranking by a name", lambda: _rank(method="flap"), "method"),
    Refusal("a ranking of stacked blocks", lambda: _rank(network=NETWORK), "unrolled_network"),
    Refusal("a ranking that reads labels", lambda: _rank(method=METHODS["taylor"]), "closed forms"),
    Refusal("a ranking with a refit", lambda: _rank(method=METHODS["cmr"]), "closed forms"),
    Refusal("a ranking to a share above 1", lambda: _rank(share=1.5), "share"),
    Refusal("a random ranking without a key", lambda: _rank(method=METHODS["random"]), "key"),
    Refusal("a budget of nothing", lambda: block_budgets(RANKED, 0.0), "share"),
    Refusal("a budget spread otherwise", lambda: block_budgets(RANKED, 0.5, "even"), "spread"),
    Refusal("a budget of no rankings", lambda: block_budgets([], 0.5), "no rankings"),
    Refusal("a budget below where an elimination ended", lambda: block_budgets(EARLY, 0.25, "global"), "keep"),
    Refusal("folds of no rankings", lambda: fold_blocks([], {}), "no rankings"),
    Refusal("folds without a budget", lambda: fold_blocks(RANKED, {"mlp_product0": 3}), "mlp_product1"),
    Refusal("folds of more than there is", lambda: fold_blocks(RANKED, {each.tap: 99 for each in RANKED}), "keep 99"),
    Refusal("a folded network of stacked blocks", lambda: folded_decoder(NETWORK, fold_blocks(RANKED, block_budgets(RANKED, 0.5))), "unrolled_network"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_cannot_be_is_refused(row):
    check_refusal(row)
