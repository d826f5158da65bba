"""Reduce the MLPs or the heads of all blocks of a language model, from one pass over text.

    1  text_statistics     moments and curvature of every block, one pass over the calibration text
    2  rank_blocks         the order in which the units of each block go
    3  block_budgets       how many stay: the same share everywhere, or one budget over all blocks
    4  fold_blocks         what replaces the others, closed form: a plan
    5  compile_plan        the smaller network; `folded_decoder` has the shapes of the dense one, zeros where units went

Every block is ranked and fitted on the dense network, so one pass serves all methods and budgets. Where it has a scale
that blocks share, the budget goes to the units that are worth most wherever they are: risks of an elimination as they
are, scores of other criteria in standard deviations of their block, as FLAP does.

Source: CMR, arXiv 2602.24266; FLAP, arXiv 2312.11983 (standardised scores over blocks).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import number, one_of
from abstraction.evaluation.text import text_decoder
from abstraction.models import Network
from abstraction.models.decoder_unrolled import UnrolledDecoder, stacked_decoder, unrolled_decoder
from abstraction.models.wiring import find_array
from abstraction.reduction.calibration import Calibration
from abstraction.reduction.fitting import distortion
from abstraction.reduction.folding import fold_params
from abstraction.reduction.methods import Method
from abstraction.reduction.plans import Plan, reduction_plan
from abstraction.reduction.ranking import Measured, Ranking, check_method, rank_measured, share_budget
from abstraction.reduction.replacing import fitted_fold
from abstraction.reduction.selection import allocate, check_keep, group_scores
from abstraction.reduction.text import TextStatistics, block_statistics
from abstraction.typing import AnyArray

Part = Literal["mlp", "heads"]
Spread = Literal["uniform", "global"]


def unrolled_network(network: Network) -> Network:
    """Return a decoder in the form that units are removed from; its weights are views of the original ones.

    Raises:
      ValueError: no decoder of the whole vocabulary.
    """
    decoder = text_decoder(network)
    return Network(*unrolled_decoder(decoder, jax.tree.map(np.asarray, network.params)))


def block_taps(network: Network, part: Part) -> tuple[str, ...]:
    """Return the taps of a part in all blocks of an unrolled decoder, in the order they run.

    Raises:
      ValueError: another network, or an unknown part.
    """
    one_of("part", part, get_args(Part))
    model = network.model
    if not isinstance(model, UnrolledDecoder):
        raise ValueError(f"got a network of {type(model).__name__}, expected one of `unrolled_network`")
    name = "head_output" if part == "heads" else "mlp_product" if model.decoder.config.gated else "mlp_hidden"
    return tuple(f"{name}{block}" for block in range(len(model.blocks)))


def rank_blocks(
    network: Network,
    text: TextStatistics,
    part: Part,
    method: Method,
    *,
    share: float = 0.5,
    key: Array | None = None,
) -> Iterator[Ranking]:
    """Rank the units, or heads, of every block, one block after another.

    Args:
      network: `unrolled_network` of the dense one.
      text: its statistics.
      part: what is reduced.
      method: how; one that looks at examples again, or refits, cannot be had from statistics alone.
      share: the least share of units that will be kept; an elimination ends there.
      key: randomness of `random`.

    Raises:
      ValueError: another network or part, a share outside (0, 1], or a method that reads labels or examples.
    """
    check_method(method)
    _check_closed(method)
    taps = block_taps(network, part)
    number("least share", share, float(np.finfo(float).tiny), 1.0)
    return _ranked(network, text, taps, method, share, key)


def _ranked(
    network: Network, text: TextStatistics, taps: Sequence[str], method: Method, share: float, key: Array | None
) -> Iterator[Ranking]:
    model: Any = network.model
    nothing = Calibration(np.zeros((0, 1), np.int32))
    for block, tap in enumerate(taps):
        groups = model.head_groups(tap) if tap.startswith("head") else None
        count = len(groups) if groups else network.taps[tap].width
        statistics = block_statistics(network, text, tap, method.discrepancy)
        root = None if method.selector != "elimination" else written_root(network, text, tap, method.discrepancy)
        drawn = None if key is None else jax.random.fold_in(key, block)
        measured = Measured(statistics, root, max(1, round(share * count)))
        yield rank_measured(network, nothing, tap, method, measured, groups=groups, key=drawn)


def written_root(network: Network, text: TextStatistics, tap: str, discrepancy: str) -> Float[np.ndarray, "W D"]:
    """Return F^(1/2) W, a root of the curvature at a tap with as many rows as what is written has numbers."""
    name = tap.rstrip("0123456789")
    (consumer,) = network.model.consumers(tap)  # pyright: ignore[reportAttributeAccessIssue]
    kernel = np.asarray(find_array(network.params, consumer.kernel), np.float64)
    values, vectors = np.linalg.eigh(np.asarray(text.units[name].written[discrepancy][int(tap[len(name) :])]))
    return (np.sqrt(np.maximum(values, 0.0)) * vectors).T @ kernel.T


def block_budgets(rankings: Sequence[Ranking], share: float, spread: Spread = "uniform") -> dict[str, int]:
    """Say how many units, or heads, every block keeps.

    Args:
      rankings: of all blocks, by one method.
      share: of all units to keep.
      spread: the same share in every block, or one budget over all of them.

    Raises:
      ValueError: no rankings, a share outside (0, 1], an unknown spread, or a budget over eliminations that ended
        before it is spent.
    """
    _check_rankings(rankings)
    number("share to keep", share, float(np.finfo(float).tiny), 1.0)
    one_of("spread", spread, get_args(Spread))
    counts = {each.tap: len(each.groups) if each.groups else each.statistics.width for each in rankings}
    if spread == "uniform":
        return {tap: check_keep(max(1, round(share * count)), count) for tap, count in counts.items()}
    total = max(len(counts), round(share * sum(counts.values())))
    paths = [each.path for each in rankings if each.path is not None]
    # An elimination that ended early says nothing of the units that it left.
    least = max((path.width - len(path.order) for path in paths), default=1)
    if paths and rankings[0].groups is None:
        return share_budget(rankings, total, min_keep=least)
    scores = {each.tap: _standardised(each) for each in rankings}
    return {tap: len(kept) for tap, kept in allocate(scores, total, min_keep=least).items()}


def fold_blocks(rankings: Sequence[Ranking], keep: Mapping[str, int]) -> Plan:
    """Choose the units that stay and fit what replaces the others, block by block.

    Raises:
      ValueError: no rankings, budgets of other taps, or one that a ranking does not have.
    """
    _check_rankings(rankings)
    taps = [ranking.tap for ranking in rankings]
    if set(keep) != set(taps):
        raise ValueError(f"got budgets of {sorted(keep)}, expected those of the rankings, {taps}")
    folds, notes, risks = [], [], []
    for ranking in rankings:
        fold, note = fitted_fold(ranking, ranking.kept(keep[ranking.tap]))
        folds.append(fold)
        notes.append(note)
        risks.append(distortion(ranking.statistics.hessian, ranking.moments, fold.kept, fold.coefficients) / 2)
    scores = [ranking.scores for ranking in rankings]
    return reduction_plan(rankings[0].network, folds, scores=scores, risks=risks, notes=notes)


def folded_decoder(network: Network, plan: Plan) -> Network:
    """Return the decoder under a plan in the shapes of the dense one: maps folded, zeros where units went.

    It computes what the smaller network does, whatever the budgets, so that one program runs all of them.

    Args:
      network: `unrolled_network` of the dense one.
      plan: of its taps.

    Raises:
      ValueError: another network, or a fold that is not exact in it.
    """
    block_taps(network, "mlp")
    folded = network
    for fold in plan.folds:
        folded = fold_params(folded, fold)
    biased = folded
    for tap in (*block_taps(network, "mlp"), *block_taps(network, "heads")):
        model: Any = biased.model
        biased = Network(*model.with_biases(biased.params, tap))
    return Network(*stacked_decoder(biased.model, biased.params))  # pyright: ignore[reportArgumentType]


def _check_rankings(rankings: Sequence[Ranking]) -> None:
    if not rankings:
        raise ValueError("got no rankings, expected one for each block")


def _check_closed(method: Method) -> None:
    again = method.selector == "taylor" or method.parent_rule == "authors" or method.folding == "joint-constant"
    if again or method.refit is not None or method.curvature != "ggn":
        raise ValueError(
            f"got a method that looks at examples again ({method.about}), expected one of closed forms: no refit, "
            "taylor scores, joint constants, full Hessians or weighted maps"
        )


def _standardised(ranking: Ranking) -> Float[AnyArray, " U"]:
    scores = ranking.scores if ranking.groups is None else group_scores(ranking.scores, ranking.groups)
    spread = scores.std()
    return (scores - scores.mean()) / (spread if spread > 0 else 1.0)
