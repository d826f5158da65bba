"""Which heads carry the name to the token that says it: by transport, and by swapping each alone.

    transport   the heads of all blocks are the sites; a head counts by its cost, and the plan is cut into the best K
    exact       the gain of the logit of the right name over the base's when one head is swapped, for every head
    agreement   Spearman's correlation of the two, and how many of the first K they share

What the MLPs write is measured in the same way. Name movers are the heads that come out first (Wang et al.,
arXiv 2211.00593).
"""

import dataclasses

import jax
import numpy as np

from abstraction.causal.pairs import select_variables
from abstraction.evaluation import Recorded, Tally
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import SiteBank, group_sites, state_sites
from abstraction.localization import VARIANTS, CutMenu, Sweeping, localize, measure_effects, sweep
from abstraction.localization.attribution import rank_agreement
from abstraction.localization.pipeline import Localization
from abstraction.models import Network
from abstraction.tasks.ioi import VARIABLES
from experiments.harness.methods import Tell
from experiments.harness.results import Results, accuracies
from experiments.harness.timing import stopwatch
from experiments.ioi.options import Ioi
from experiments.ioi.subject import ROLES, SIGNATURE, Questions, Subject, first_pairs, record_pairs

WRITERS = ("head_output", "mlp_output")
_TOP = 10
_SIZES = (1, 2, 3, 4, 6, 8, 12)
VARIABLE = "token"


def find_heads(
    results: Results, subject: Subject, questions: Questions, config: Ioi, position: str, tell: Tell
) -> None:
    """Find what writes the name at a token, and write down how two ways of looking agree."""
    row, shape = VARIABLES.index(VARIABLE), subject.decoder.config
    chosen = {
        role: select_variables(first_pairs(questions.banks[role], config.banks.wide).bank, [row]) for role in ROLES
    }
    for tap, width in zip(WRITERS, (shape.head_size, shape.width), strict=True):
        tell(f"{tap}, recording")
        network, recorded = record_pairs(subject, questions, chosen, (position,), tap, config.network.batch)
        place = network.taps[tap]
        sites = group_sites(place, width) if width < place.width else state_sites(place)
        tell(f"{tap}, transport")
        with stopwatch() as elapsed:
            found = _coupled(network, recorded, sites)
        results.took(f"plot-{tap}", elapsed)
        tell(f"{tap}, each alone")
        with stopwatch() as elapsed:
            exact = _exact(network, recorded["fit"], width if width < place.width else None)
        results.took(f"sweep-{tap}", elapsed)
        _keep(results, tap, found, exact, shape.depth)
        tally = judge_alone(network, found.choice.handles, {"test": recorded["test"]})["test"]
        _keep_joint(results, tap, found, tally)


def _coupled(network: Network, recorded: dict[str, Recorded], sites: SiteBank) -> Localization:
    """Couple the variable to what blocks write, and swap the first K together."""
    effects = measure_effects(network, recorded["fit"], sites, SIGNATURE)
    rule = VARIANTS["ours"].fine
    plans = rule(effects)
    jax.block_until_ready(plans.coupling.plan)
    menu = CutMenu(tuple(size for size in _SIZES if size <= sites.size), (1.0,), per_site=True)
    return localize(network, effects, plans, menu, evidence=recorded["calibration"])


def _exact(network: Network, fit: Recorded, width: int | None) -> np.ndarray:
    """Return the gain in logit of swapping each site alone, `[S]`."""
    found = sweep(network, fit, width, Sweeping(measure="logit_difference", controls=None))
    return np.asarray(found.values, np.float64).reshape(-1)


def _keep(results: Results, tap: str, found: Localization, exact: np.ndarray, depth: int) -> None:
    by_cost = -np.asarray(found.effects.cost, np.float64)[0]
    first = [np.argsort(-scores, kind="stable") for scores in (by_cost, exact)]
    shared = {f"shared_{top}": len(set(first[0][:top]) & set(first[1][:top])) / top for top in (3, 5, _TOP)}
    agreement = float(rank_agreement(by_cost[None], exact[None])[0])
    results.add(f"plot-{tap}", VARIABLE, "fit", agreement=agreement, **shared)
    results.arrays[f"{tap}/cost"] = -by_cost.reshape(depth, -1)
    results.arrays[f"{tap}/exact"] = exact.reshape(depth, -1)
    name = lambda site: [int(site) // (len(exact) // depth), int(site) % (len(exact) // depth)]
    results.details[tap] = {
        "transport": [name(site) for site in first[0][:_TOP]], "exact": [name(site) for site in first[1][:_TOP]],
    }  # fmt: skip


def _keep_joint(results: Results, tap: str, found: Localization, tally: Tally) -> None:
    for variable, values in accuracies((VARIABLE,), tally).items():
        if variable != "mean":
            results.add(f"plot-{tap}", variable, "heads", **values)
    setting = {key: np.asarray(value).item() for key, value in dataclasses.asdict(found.choice)["settings"][0].items()}
    results.details[tap] |= {"chosen": setting}
