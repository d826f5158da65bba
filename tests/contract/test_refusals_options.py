"""Options that are none: frozen dataclasses check their words and numbers when they are built."""

import dataclasses

import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.interventions import unit_sites
from abstraction.localization import (
    VARIANTS,
    Boundless,
    BruteForce,
    Cosine,
    CutMenu,
    GromovWasserstein,
    Mask,
    Recipe,
    ReferenceTransport,
    Rotation,
    Search,
    SearchConfig,
    Selection,
    Signature,
    Transport,
)
from abstraction.localization.rules import site_scopes
from abstraction.models import Tap

SITES = unit_sites(Tap("hidden", 6))
ONES = np.ones((2, 6))
NAN = ONES * np.nan

RULES = [
    ("eps of 0", lambda: Transport(epsilons=(0.0,)), r"epsilons \[0.0\], expected positive finite"),
    ("eps of NaN", lambda: Transport(epsilons=(np.nan,)), r"epsilons \[nan\]"),
    ("no eps", lambda: Transport(epsilons=()), r"epsilons \[\]"),
    ("eps alone", lambda: Transport(epsilons=0.1), "epsilons 0.1"),
    ("eps in words", lambda: Transport(epsilons=("small",)), r"epsilons \['small'\]"),
    ("a scope of transport", lambda: Transport("layer"), "scope 'layer', expected one of"),
    ("no iterations", lambda: Transport(iterations=0), "iterations 0, expected at least 1"),
    ("iterations below 0", lambda: Transport(iterations=-5), "iterations -5"),
    ("half an iteration", lambda: Transport(iterations=1.5), "iterations 1.5"),
    ("tau above 1", lambda: Transport(taus=(1.5,)), r"taus \(1.5,\), expected values in \(0, 1\]"),
    ("tau of NaN", lambda: Transport(taus=(np.nan,)), r"taus \[nan\]"),
    ("tau of 0", lambda: Transport(tau_abstract=0.0), r"tau_abstract \[0.0\]"),
    ("absolute in words", lambda: Transport(absolute="no"), "absolute 'no', expected True or False"),
    ("reference eps below 0", lambda: ReferenceTransport((-1.0,)), r"epsilons \[-1.0\]"),
    ("beta of 0", lambda: ReferenceTransport(beta_neural=(0.0,)), r"neural betas \[0.0\]"),
    ("beta of NaN", lambda: ReferenceTransport(beta_abstract=np.nan), r"abstract betas \[nan\]"),
    ("no betas", lambda: ReferenceTransport(beta_neural=()), r"neural betas \[\]"),
    ("no kernel iterations", lambda: ReferenceTransport(iterations=0), "iterations 0"),
    ("alpha of 0", lambda: GromovWasserstein(alpha=0.0), r"alpha \[0.0\]"),
    ("alpha above 1", lambda: GromovWasserstein(alpha=1.5), r"alpha 1.5, expected a value in \(0, 1\]"),
    ("alpha of NaN", lambda: GromovWasserstein(alpha=np.nan), r"alpha \[nan\]"),
    ("a scope of geometries", lambda: GromovWasserstein(scope="all"), "scope 'all'"),
    ("a temperature of NaN", lambda: Cosine(np.nan), r"temperature \[nan\]"),
    ("a scope of cosines", lambda: Cosine(scope=0), "scope 0, expected one of"),
]

OPTIONS = [
    ("a mode that is none", lambda: Signature("logits"), "signature mode 'logits', expected one of"),
    ("a mode that is a number", lambda: Signature(1), "signature mode 1, expected"),
    ("a metric that is none", lambda: Signature(metric="l3"), "cost metric 'l3', expected one of"),
    ("a flag in words", lambda: Signature(unit="no"), "unit 'no', expected True or False"),
    ("blocks of nothing", lambda: Signature(blocks=True), "blocks without families"),
    ("no classes", lambda: Signature(classes=0), "classes 0, expected at least 1"),
    ("half a class", lambda: Signature(classes=1.5), "classes 1.5"),
    ("families below 0", lambda: Signature(families=np.array([0, -1])), "families of shape"),
    ("families of halves", lambda: Signature(families=np.array([0.0, 0.5])), "and type float64"),
    ("families that are truths", lambda: Signature(families=np.array([True, False])), "and type bool"),
    ("families in a table", lambda: Signature(families=np.zeros((2, 2), int)), r"shape \(2, 2\)"),
    ("no families", lambda: Signature(families=np.zeros(0, int)), r"shape \(0,\)"),
    ("an axis by number", lambda: Selection(shared_axis=0), "shared axis 0, expected str"),
    ("first in words", lambda: Selection(first_wins="yes"), "first_wins 'yes', expected True or False"),
    ("ties by costs", lambda: CutMenu((1,), (1.0,), break_ties="costs"), "break_ties 'costs', expected one of"),
    ("overlap by plus", lambda: CutMenu((1,), (1.0,), overlap="plus"), "overlap 'plus', expected one of"),
    ("no sizes", lambda: CutMenu((), (1.0,)), r"subset sizes \[\]"),
    ("size 0", lambda: CutMenu((0,), (1.0,)), r"subset sizes \[0\]"),
    ("half a size", lambda: CutMenu((1.5,), (1.0,)), "subset size 1.5, expected at least 1"),
    ("size that is true", lambda: CutMenu((True,), (1.0,)), "subset sizes"),
    ("no strengths", lambda: CutMenu((1,), ()), r"strengths \[\]"),
    ("strength 0", lambda: CutMenu((1,), (0.0,)), r"strengths \[0.0\], expected positive finite"),
    ("strength below 0", lambda: CutMenu((1,), (-1.0,)), r"strengths \[-1.0\]"),
    ("strength of NaN", lambda: CutMenu((1,), (np.nan,)), r"strengths \[nan\]"),
    ("endless strength", lambda: CutMenu((1,), (np.inf,)), r"strengths \[inf\]"),
    ("strength in words", lambda: CutMenu((1,), ("full",)), r"strengths \['full'\]"),
    ("per site in words", lambda: CutMenu((1,), (1.0,), "yes"), "per_site 'yes', expected True or False"),
    ("alone by number", lambda: CutMenu((1,), (1.0,), alone=1), "alone 1, expected True or False"),
    ("a rule by name", lambda: Recipe(rule="transport"), "rule 'transport', expected Rule"),
    ("a menu in numbers", lambda: Recipe(menu=(1, 2)), r"menu \(1, 2\), expected CutMenu"),
    ("a signature by name", lambda: Recipe(signature="kl"), "signature 'kl', expected Signature"),
    ("a selection by name", lambda: Recipe(selection="epsilon"), "selection 'epsilon', expected Selection"),
    ("controls by number", lambda: Recipe(controls=5), "controls 5, expected Repeats"),
    ("a featurizer by name", lambda: Search("das"), "featurizer 'das', expected Featurizer"),
    ("a config in numbers", lambda: Search(config=5), "search config 5, expected SearchConfig"),
    ("no strength to search", lambda: Search(strengths=()), r"strengths \[\]"),
    ("strength 0 to search", lambda: Search(strengths=(1.0, 0.0)), r"strengths \[1.0, 0.0\]"),
    ("no batch", lambda: SearchConfig(batch_size=0), "batch_size 0, expected at least 1"),
    ("half a batch", lambda: SearchConfig(batch_size=1.5), "batch_size 1.5"),
    ("no epochs", lambda: SearchConfig(max_epochs=0), "max_epochs 0"),
    ("no bands", lambda: SearchConfig(bands=0), "bands 0"),
    ("epochs below 0", lambda: SearchConfig(min_epochs=-1), "min_epochs -1, expected at least 0"),
    ("patience below 0", lambda: SearchConfig(patience=-1), "patience -1"),
    ("patience of NaN", lambda: SearchConfig(patience=np.nan), "patience nan"),
    ("no steps", lambda: SearchConfig(steps_per_epoch=0), "steps per epoch 0"),
    ("a margin of 1", lambda: SearchConfig(margin=1.0), "margin 1.0"),
    ("a margin of NaN", lambda: SearchConfig(margin=np.nan), "margin nan, expected 0 to 1"),
    ("all weight on one half", lambda: SearchConfig(sensitive_weight=1.0), "sensitive weight 1.0"),
    ("a weight of NaN", lambda: SearchConfig(sensitive_weight=np.nan), "sensitive weight nan"),
    ("a cosine in words", lambda: SearchConfig(cosine="no"), "cosine 'no', expected True or False"),
    ("a map that is none", lambda: Rotation("euler"), "parametrization 'euler', expected one of"),
    ("temperature 0", lambda: Boundless(temperatures=(1.0, 0.0)), r"temperatures \[1.0, 0.0\]"),
    ("temperature of NaN", lambda: Boundless(temperatures=(1.0, np.nan)), r"temperatures \[1.0, nan\]"),
    ("one temperature", lambda: Boundless(temperatures=(1.0,)), "temperatures"),
    ("a rate of NaN", lambda: Boundless(boundary_rate=np.nan), "boundary rate nan"),
    ("a rate below 0", lambda: Boundless(boundary_rate=-1.0), "boundary rate -1.0"),
    ("a penalty of NaN", lambda: Boundless(penalty_weight=np.nan), "penalty weight nan"),
    ("a mask of NaN", lambda: Mask((1.0, np.nan)), r"temperatures \[1.0, nan\]"),
    ("a mask of 0", lambda: Mask((0.0, 1.0)), r"temperatures \[0.0, 1.0\]"),
    ("a mask of three", lambda: Mask((1.0, 0.5, 0.1)), "temperatures"),
    ("scores of NaN", lambda: BruteForce(NAN), "expected finite numbers"),
    ("scores in a row", lambda: BruteForce(np.ones(3)), r"scores of shape \(3,\)"),
    ("a temperature of 0", lambda: BruteForce(ONES, 0.0), r"temperature \[0.0\]"),
    ("a scope that is none", lambda: site_scopes(SITES, "layer"), "scope 'layer', expected one of"),
    ("a variant's rule", lambda: dataclasses.replace(VARIANTS["v4"], fine="v1"), "fine rule 'v1'"),
    ("a variant's menu", lambda: dataclasses.replace(VARIANTS["v4"], menu=(1,)), "menu"),
    ("no depth to swap", lambda: dataclasses.replace(VARIANTS["v4"], heaviest=0), "heaviest 0"),
    ("a union in words", lambda: dataclasses.replace(VARIANTS["v4"], union="yes"), "union 'yes'"),
]

ROWS = [Refusal(*row) for row in (*RULES, *OPTIONS)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_refused(row):
    check_refusal(row)
