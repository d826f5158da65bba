"""The page of a run: verdicts in words, nothing that ends its script, a browser that clicks through it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.equality.shown import REPORT
from experiments.harness.options import Options
from experiments.harness.page import writing
from experiments.harness.page.contents import differences, verdicts
from experiments.harness.page.writing import NAME, page, write_page
from experiments.harness.records import Row, Unit, create_run

EVIL = 'Mary </script><script>alert("x")</script> & <b>John</b> gave a drink to'
PAIRS = 5


def _rows(method, iia, controls=(0.5, 0.4), seconds=1.0):
    rows = []
    for variable, value in (("wx", iia), ("yz", iia), ("mean", iia)):
        values = {"iia": value, "iia_low": value - 0.05, "iia_high": min(1.0, value + 0.05), "pairs": 100.0}
        rows += [Row("heq", method, variable, "test", name, 1, each) for name, each in values.items()]
        for kind, level in zip(("random", "shuffled"), controls, strict=True):
            name = f"control-{kind}-{method}"
            rows += [
                Row("heq", name, variable, "test", "iia", 1, level),
                Row("heq", name, variable, "test", "pairs", 1, 100.0),
            ]
    return [*rows, Row("heq", method, "mean", "test", "seconds", 1, seconds)]


def _unit(pairs=True):
    rows = [Row("heq", "backbone", "output", "validation", name, 1, 1.0) for name in
            ("accuracy", "balanced_accuracy", "worst_cell", "epochs", "seconds")]  # fmt: skip
    for variable in ("wx", "yz", "mean"):
        values = {"iia": 0.0, "iia_low": 0.0, "iia_high": 0.02, "pairs": 100.0, "chance": 0.5}
        rows += [Row("heq", "control-identity", variable, "test", name, 1, value) for name, value in values.items()]
    rows += _rows("das", 0.9) + _rows("cosine", 0.45) + _rows("full-state", 0.99, (0.99, 0.5))
    chosen = lambda score: {"calibration_score": [score, score], "settings": {"wx": {}, "yz": {}}, "ties": [0, 0],
                            "candidates_per_variable": 3}  # fmt: skip
    details = {"data": "0" * 64, "das": chosen(0.8), "cosine": chosen(0.7), "full-state": chosen(0.99)}
    mass, whole = np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    mass[0, 1, 2], mass[1, 2, :2] = 1.0, 0.5
    arrays = {"das/mass": mass, "cosine/mass": mass[:, ::-1].copy(), "full-state/mass": whole}
    if pairs:
        details["pairs"] = {"split": "test", "answers": None, "base": [EVIL] * PAIRS, "source": [EVIL] * PAIRS,
                            "expected": [[0] * PAIRS, [1] * PAIRS]}  # fmt: skip
        arrays["das/got"] = np.array([[0, 1, 0, -1, 0], [1] * PAIRS], np.int32)
    return Unit("seed-1", rows, details, arrays)


def _run(folder, unit=None, **options):
    run = create_run(folder, Options(**options), resume=False)
    run.add_to_manifest(seeds=[1], experiment="heq")
    run.write_unit(_unit() if unit is None else unit)
    return run


def _packed(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found[1])


def test_a_verdict_is_that_of_the_best_calibration_score_and_names_its_controls():
    from experiments.harness.metrics import Metrics

    unit = _unit()
    first, second = verdicts([unit], Metrics(unit.rows))
    assert (first["variable"], first["method"], first["iia"]) == ("wx", "das", 0.9)
    assert first["controls"] == {"random": 0.5, "shuffled": 0.4, "identity": 0.0, "chance": 0.5}
    assert first["above"] is True
    assert "layer 1, 1 directions of 4: units 2" in first["where"]
    assert "layer 2" in second["where"]


def test_what_does_not_exceed_its_controls_is_said_to(tmp_path):
    unit = _unit()
    unit.details.pop("das")
    text = page(_run(tmp_path / "run", unit), REPORT)
    assert "Not shown: does not exceed its controls (random, shuffled, chance)" in text
    assert "Found: above its controls" not in text
    assert "Found: above its controls" in page(_run(tmp_path / "other"), REPORT)


def test_prompts_cannot_end_the_script(tmp_path):
    text = page(_run(tmp_path / "run"), REPORT)
    assert text.count("<script") == 2
    assert "<b>John" not in text
    assert _packed(text)["pairs"]["base"] == [EVIL] * PAIRS


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    path = write_page(_run(tmp_path / "run"), REPORT)
    text = path.read_text(encoding="utf-8")
    assert path.name == NAME
    assert not re.findall(r"""(?:src|href)\s*=|url\(|https?://(?!www\.w3\.org/2000/svg)|@import""", text)
    assert path.stat().st_size < 200_000


def test_a_page_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"bytes for .*, expected at most 100"):
        write_page(_run(tmp_path / "run"), REPORT)


def test_records_without_outcomes_are_shown_and_what_is_missing_is_named(tmp_path):
    text = page(_run(tmp_path / "run", _unit(pairs=False)), REPORT)
    assert "Not in these records: outcomes of single pairs; searches." in text
    assert _packed(text)["pairs"] is None


def test_differences_between_runs_are_listed_by_option(tmp_path):
    one, two = _run(tmp_path / "one"), _run(tmp_path / "two", seeds="3")
    assert differences([one, two]) == [("seeds", str(Options().seeds), "3")]
    assert "Options in which the runs differ" in page(one, REPORT, [two])


def test_a_stranger_clicks_through_the_page(tmp_path, browser):
    path = write_page(_run(tmp_path / "run"), REPORT)
    browser.get(Path(path).resolve().as_uri())
    one = lambda selector: browser.find_element("css selector", selector)
    cell = one('[data-map="0"][data-row="1"][data-column="2"]')
    browser.execute_script("arguments[0].focus()", cell)
    assert one(".tip").text.startswith("layer 1, 2: 1.000")
    cell.click()
    told = one("#pairs").text
    assert "2 of 5 kept pairs fail" in told
    assert told.index("expected 0, got 1") < told.index("as expected")
    assert "not finite" in told
    assert EVIL in told
    methods = lambda: [row.text.split()[0] for row in browser.find_elements("css selector", "#bars tbody tr")]
    one("#bars th:nth-child(2) button").click()
    assert methods() == ["full-state", "das", "cosine", "control-identity"]
    one("#bars th:nth-child(2) button").click()
    assert methods()[0] == "control-identity"
    one('[data-copy="csv"]').click()
    assert "copied" in one("#copied").text
    assert browser.get_log("browser") == []
