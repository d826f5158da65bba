"""An intervention is data: another network, site, strength or eps compiles nothing."""

from contextlib import contextmanager

import jax
import numpy as np
from planted import planted

from abstraction.evaluation import judge, judge_controls
from abstraction.interventions import unit_sites
from abstraction.localization import (
    PROTOCOLS,
    Boundless,
    CutMenu,
    Mask,
    Rotation,
    SearchConfig,
    Transport,
    alignment_search,
    candidate_grid,
    coarse_stage,
    coordinate_support,
    fine_stage,
    full_supports,
    gather_evidence,
    plot,
)


@contextmanager
def _compilations():
    """Count programs handed to the compiler."""
    events = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _everything(plant, seed, epsilons, strengths, rates, order):
    sites = jax.tree.map(lambda leaf: leaf[order], unit_sites(plant.model.taps["hidden"]))
    evidence = gather_evidence([plant.calibration])
    found = plot(
        plant.model, plant.params, *plant.fit, sites, Transport(epsilons=epsilons), CutMenu((1, 2), strengths), evidence
    )
    tap = plant.model.taps["hidden"]
    supports = [*full_supports(tap, range(2)), coordinate_support(tap, 0, 0, order[:3].tolist(), "three")]
    candidates = candidate_grid(
        jax.random.key(seed), tap, supports, ranks=(1, 2), learning_rates=rates, sparsities=rates
    )
    searches = [
        alignment_search(
            jax.random.key(seed), plant.model, plant.params, *plant.fit, candidates, evidence, featurizer,
            tap="hidden", config=SearchConfig(max_epochs=2, batch_size=64), strengths=strengths,
        )
        for featurizer in (Rotation(), Rotation("oblique"), Boundless(), Mask())
    ]  # fmt: skip
    network = (plant.model, plant.params, *plant.fit)
    coarse_stage(*network, tap, PROTOCOLS["ours"], evidence)
    fine_stage(*network, {"units": sites}, (0, 0), PROTOCOLS["ours"], evidence)
    for handles in (found.choice.handles, *(search.choice.handles for search in searches)):
        judge(plant.model, plant.params, handles, {"test": plant.test})
        judge_controls(jax.random.key(seed), plant.model, plant.params, handles, {"test": plant.test}, draws=3)
    return found.choice.scores


def test_the_second_call_compiles_nothing():
    first, second = planted(rotate=False), planted(rotate=True)
    with _compilations() as cold:
        before = _everything(first, 0, (0.1, 1.0), (1.0,), (1e-3,), np.arange(6))
    with _compilations() as warm:
        after = _everything(second, 1, (0.2, 2.0), (0.7,), (1e-2,), np.arange(6)[::-1].copy())
    assert cold, "the counter counts"
    assert not np.array_equal(before, after), "the second call is another problem"
    assert not warm
