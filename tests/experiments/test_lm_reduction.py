"""Reduction of a language model end to end, on a random decoder.

python -m experiments lm-reduction --quick
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from heqruns import Ended, command

from abstraction.models import load_decoder
from abstraction.models.hub_export import require_made_from
from abstraction.reduction.blocks import unrolled_network
from experiments.harness.metrics import Metrics
from experiments.harness.records import Row, Unit, open_run
from experiments.lm_reduction.exporting import Exports
from experiments.lm_reduction.options import TINY, LanguageModel, LmReduction, Texts
from experiments.lm_reduction.subject import load_subject, own_rows, python_rows
from experiments.lm_reduction.tables import verdicts

METHODS = ("--methods", "cmr-closed", "flap", "random", "--elsewhere", "cmr-closed")
BUDGETS = ("--keeps", 0.5, "--elsewhere-keep", 0.5)
COMMAND = ("lm-reduction", "--quick", *METHODS, *BUDGETS, "--calibrations", "python", "own", "--export")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("quick") / "run"
    return out, command(*COMMAND, "--out", out)


@pytest.fixture(scope="module")
def unit(done: tuple[Path, Ended]) -> Unit:
    return open_run(done[0]).read_unit("seed-0")


def test_the_run_ends_well_and_explains_its_tables(done: tuple[Path, Ended]):
    folder, ended = done
    assert (ended.status, ended.err) == (0, "")
    text = " ".join(ended.out.split())
    for words in ("mlp-uniform, calibrated on python", "heads-global", "other calibration texts", "-zero put nothing"):
        assert words in text, words
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"loss-python", "loss-own", "swaps"}


def test_every_reduced_network_keeps_the_units_it_is_said_to_keep(unit: Unit):
    names = [name for name in unit.arrays if name.endswith("/kept")]
    assert len(names) == 3 * 2 * 2 + 2  # methods, parts, spreads; and one method on the other text, uniform
    for name in names:
        _, variable, _, _ = name.split("/")
        most = 48 if variable.startswith("mlp") else 24
        assert unit.arrays[name].sum() == 3 * most // 2, name


def test_the_smaller_networks_cost_less(unit: Unit):
    metrics = Metrics(unit.rows)
    for variable in ("mlp-uniform", "heads-uniform"):
        for name in ("parameters", "multiply_adds"):
            smaller = metrics.mean("cmr-closed", variable, "python-keep0.5", name)
            assert smaller < metrics.mean("dense", "network", "cost", name)


def test_folds_of_kept_units_are_closer_to_the_dense_network_than_random_ones_with_means(unit: Unit):
    metrics = Metrics(unit.rows)
    for variable in ("mlp-uniform", "heads-uniform"):
        kl = {m: metrics.mean(m, variable, "python-keep0.5", "kl_own") for m in ("cmr-closed", "random")}
        assert kl["cmr-closed"] < 0.8 * kl["random"]


def test_the_networks_of_equal_shares_are_written_and_read_again(done: tuple[Path, Ended]):
    exported = done[0] / "exported" / "seed-0"
    assert {path.name for path in exported.iterdir()} == {
        f"cmr-closed-{part}-uniform-python-keep0.5" for part in ("mlp", "heads")
    }
    shapes = {}
    for path in exported.iterdir():
        require_made_from(path, load_subject(TINY).network)
        config = load_decoder(path).model.config
        shapes[path.name.split("-")[2]] = (config.heads, config.hidden, config.mlp_bias)
    assert shapes == {"mlp": (4, 24, True), "heads": (2, 48, False)}


def test_writing_needs_no_transformers_and_takes_the_tokenizer_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("transformers", "torch"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    subject = load_subject(TINY)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    config = LmReduction(network=LanguageModel(str(tmp_path / "source")), export=True)
    exports = Exports.of(config, subject, tmp_path / "out")
    unrolled = unrolled_network(subject.network)
    for _ in range(2):  # a run that was stopped writes again
        path = exports.write(unrolled, "cmr", "mlp-uniform", "python-keep0.5")
        assert {each.name for each in path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert exports.write(unrolled, "cmr", "mlp-global", "python-keep0.5") is None
    assert exports.write(unrolled, "cmr", "mlp-uniform", "own-keep0.5") is None
    assert Exports.of(LmReduction(), subject, tmp_path / "out") is None


def test_no_docstring_is_in_calibration_and_test():
    subject, texts = load_subject(TINY), Texts(length=32, calibration=200, test=100)
    calibrations, tests = zip(*(python_rows(subject, texts, seed) for seed in (0, 1)), strict=True)
    np.testing.assert_array_equal(*tests)
    assert (calibrations[0] != calibrations[1]).any()
    for rows in calibrations:
        shared = {row.tobytes() for row in rows} & {row.tobytes() for row in tests[0]}
        assert not shared


def test_the_network_writes_other_text_with_another_key():
    subject = load_subject(TINY)
    first, again, other = (own_rows(subject, 3, 8, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.shape == (3, 8)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_verdict_compares_with_the_best_rival_and_says_nothing_where_none_loses():
    def row(method: str, text: str, value: float) -> Row:
        return Row("lm-reduction", method, "mlp-uniform", "python-keep0.75", f"loss_{text}", 0, value)

    losses = {"cmr-closed": (0.1, 0.1), "flap": (0.5, -0.1), "vbp": (0.4, 0.2), "cmr-kl": (0.2, 0.2)}
    rows = [row(m, text, v) for m, values in losses.items() for text, v in zip(("python", "own"), values, strict=True)]
    rows += [row(m, "python", 0.0)._replace(metric="seconds") for m in losses]
    (line,) = verdicts(Metrics(rows))
    assert "cmr-closed loses 0.1000, vbp, the best rival, 0.4000: 0.25 of it" in line


def test_shares_below_what_rankings_reach_are_refused():
    with pytest.raises(ValueError, match="--elsewhere-keep"):
        LmReduction(keeps=(0.9, 0.75), elsewhere_keep=0.5).check()
