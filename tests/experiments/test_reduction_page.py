"""The page of a reduction run: verdicts against rivals and lots, lines to hover over, maps of what is kept."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.harness.curves import Curves, Point
from experiments.harness.options import Options
from experiments.harness.page.reductions import figures, verdicts
from experiments.harness.page.writing import page, write_page
from experiments.harness.records import Row, Unit, create_run
from experiments.lm_reduction.curves import reduced
from experiments.lm_reduction.experiment import EXPERIMENT
from experiments.lm_reduction.figures import draw
from experiments.lm_reduction.tables import tables

LOSSES = {"cmr-closed": 0.1, "obs-affine": 0.05, "flap": 0.2, "random": 1.0}


def _unit(losses=LOSSES, seed=0, **changed):
    rows = [Row("lm-reduction", "dense", "network", text, "surprise", seed, 3.0) for text in ("python", "own")]
    rows += [Row("lm-reduction", "dense", "network", "ioi", name, seed, 0.9) for name in ("accuracy", "followed")]
    rows.append(Row("lm-reduction", "dense", "network", "ioi", "block", seed, 2.0))
    arrays = {"dense/followed": np.array([0.1, 1.0], np.float32)}
    for method, most in (losses | changed).items():
        for variable in ("mlp-uniform", "mlp-global"):
            for share in (0.75, 0.5):
                place, loss = ("lm-reduction", method, variable, f"python-keep{share:g}"), most * (1.5 - share)
                values = {"seconds": 1.0, "loss_python": loss, "loss_own": 2 * loss, "accuracy": 0.9 - loss}
                rows += [Row(*place, name, seed, value) for name, value in values.items()]
                counts = [16 * share] * 2 if variable == "mlp-uniform" else [16 * share + 2, 16 * share - 2]
                arrays[f"{method}/{variable}/{place[3]}/kept"] = np.array(counts, np.int32)
    return Unit(f"seed-{seed}", rows, {"network": "tiny", "data": "0" * 64}, arrays)


def _run(folder, *units):
    run = create_run(folder, Options(), resume=False)
    run.add_to_manifest(seeds=[0], experiment="lm-reduction")
    for unit in units or (_unit(),):
        run.write_unit(unit)
    return run


def _packed(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found[1])


def _said(lines, **facts):
    curves = Curves("layer", "loss", lines, ("cmr", "cmr-closed"), spoken=True, **facts)
    return [(card["share"], card["method"], card["say"], card["good"]) for card in verdicts([curves])]


def _line(value, low=np.nan, high=np.nan):
    return [Point(0.5, value, low, high)]


def test_the_first_of_ours_speaks_and_is_compared_with_the_best_rival_that_is_not_ours():
    (card, *_) = verdicts(reduced([_unit()]).curves)
    assert (card["method"], card["share"], card["rival"]) == ("cmr-closed", 0.75, "flap")
    np.testing.assert_allclose([card["loss"], card["of_rival"], card["of_random"]], [0.075, 0.5, 0.1])
    assert card["good"] is True
    assert [row["method"] for row in card["rows"]] == ["obs-affine", "cmr-closed", "flap", "random"]


@pytest.mark.parametrize(
    ("lines", "said", "good"),
    [
        ({"cmr": _line(0.3), "vbp": _line(0.5), "random": _line(0.2)}, "not shown to lose less than units", False),
        ({"cmr": _line(0.3), "vbp": _line(0.2), "random": _line(0.9)}, "loses more than vbp", False),
        ({"cmr": _line(0.2), "vbp": _line(0.3), "random": _line(0.9)}, "loses less than vbp", True),
        ({"cmr": _line(0.2, 0.1, 0.3), "vbp": _line(0.3, 0.25, 0.4)}, "not told apart from vbp", False),
        ({"cmr": _line(0.2, 0.1, 0.3), "random": _line(0.3, 0.25, 0.4)}, "not shown to lose less", False),
        ({"cmr": _line(0.2), "random": _line(0.3)}, "loses less than units kept by lot", True),
        ({"cmr": _line(0.2), "cmr-closed": _line(0.1)}, "nothing to compare with was run", False),
    ],
)  # fmt: skip
def test_a_verdict_says_the_worst_that_holds(lines, said, good):
    ((_, method, say, is_good),) = _said(lines)
    assert (method, is_good) == ("cmr", good)
    assert said in say


def test_an_accuracy_is_lost_below_the_dense_network_and_its_interval_turns():
    lines = {"cmr": _line(0.8, 0.7, 0.85), "vbp": _line(0.5, 0.4, 0.6)}
    (card,) = verdicts([Curves("layer", "accuracy", lines, ("cmr",), lower=False, dense=0.9, spoken=True)])
    np.testing.assert_allclose([card["loss"], card["low"], card["high"]], [0.1, 0.05, 0.2], atol=1e-9)
    assert card["say"].startswith("loses less than vbp")


def test_a_budget_that_keeps_all_and_a_value_that_is_not_finite_have_no_verdict():
    assert _said({"cmr": [Point(1.0, 0.0), Point(0.5, np.nan)]}) == []
    (figure,) = figures([Curves("layer", "loss", {"cmr": [Point(0.5, np.nan)]})])
    assert figure["lines"][0]["points"][0][1] is None


def test_seeds_give_an_interval():
    units = [_unit(seed=seed, flap=0.2 + 0.1 * seed) for seed in range(3)]
    (first, *_) = reduced(units).curves
    assert first.lines["flap"][0].low < first.lines["flap"][0].value < first.lines["flap"][0].high


def test_maps_are_drawn_where_blocks_keep_different_counts():
    kept = reduced([_unit()]).kept
    assert [each.whole for each in kept] == [16, 16]
    assert all(each.title.startswith("mlp-global") for each in kept)
    np.testing.assert_array_equal(kept[0].counts[0], [14, 10])


def test_the_page_needs_nothing_from_elsewhere_and_names_nothing_that_such_runs_never_hold(tmp_path):
    text = write_page(_run(tmp_path / "run"), EXPERIMENT.report).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=|url\(|https?://(?!www\.w3\.org/2000/svg)|@import""", text)
    assert "Not in these records" not in text
    assert "Read the handles again" not in text
    assert [each["kind"] for each in _packed(text)["maps"]] == ["kept", "kept"]


def test_an_experiment_that_reduces_nothing_has_no_such_part(tmp_path):
    report = EXPERIMENT.report._replace(reduced=None)
    assert (report.tables, report.draw) == (tables, draw)
    assert "Lost by what is kept" not in page(_run(tmp_path / "run"), report)


def test_a_stranger_reads_the_page(tmp_path, browser):
    path = write_page(_run(tmp_path / "run"), EXPERIMENT.report)
    browser.get(Path(path).resolve().as_uri())
    one = lambda selector: browser.find_element("css selector", selector)
    assert "cmr-closed: loses less than flap, its best rival" in one(".card").text
    assert one(".told").text.splitlines()[:2] == [
        "50% kept, as many MLP units in every block", "obs-affine 0.05"
    ]  # fmt: skip
    dot = one('[data-line="2"][data-point="1"]')
    browser.execute_script("arguments[0].focus()", dot)
    assert dot.get_attribute("aria-label").startswith("flap, as many")
    assert "75% kept" in one(".told").text
    one('[data-method="flap"]').click()
    assert "flap" not in one(".told").text
    one("#curve-log").click()
    assert len(browser.find_elements("css selector", "#curve-figure polyline")) == 3
    one("#curve-group option:nth-child(2)").click()
    assert "one budget of MLP units over all blocks" in one(".told").text
    cell = one('[data-map="0"][data-row="0"][data-column="0"]')
    browser.execute_script("arguments[0].focus()", cell)
    assert one(".tip").text == "cmr-closed, block 0: 14"
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.get_log("browser") == []
