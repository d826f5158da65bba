"""The forecast: operations as one counts them by hand, minutes from them, and a dash where memory does not do."""

import csv

import pytest

from abstraction.models.decoder_config import DecoderConfig
from abstraction.planning import TARGETS
from benchmarks import forecast

SIZES = {"vocabulary": 1100, "width": 8, "heads": 2, "kv_heads": 2, "head_size": 4, "hidden": 16}
TINY = DecoderConfig(**SIZES, depth=3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, shapes_for_arrays):
    huge = DecoderConfig(**SIZES | {"width": 2**17, "hidden": 2**18}, depth=20)
    folder = tmp_path_factory.mktemp("forecast")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "MODELS", {"tiny": TINY, "huge": huge})
        forecast.forecast(folder)
    with (folder / forecast.TABLE).open(newline="") as file:
        found = list(csv.DictReader(file))
    return found, (folder / "forecast.md").read_text()


def test_minutes_are_operations_over_the_peak(rows):
    found, _ = rows
    assert len(found) == 2 * 3 * len(forecast.DEVICES)
    for row in found:
        peak = int(row["devices"]) * TARGETS[row["target"]].flops
        assert float(row["least_minutes"]) == pytest.approx(float(row["operations"]) / peak / 60, rel=1e-3)
        assert float(row["minutes"]) == pytest.approx(float(row["least_minutes"]) / forecast.SHARE, rel=2e-3)


def test_methods_cost_what_they_add_to_one_another(rows):
    found, _ = rows
    tiny = {
        row["method"]: row for row in found if (row["model"], row["target"], row["devices"]) == ("tiny", "h100", "1")
    }
    runs = {method: int(row["runs"]) for method, row in tiny.items()}
    operations = {method: float(row["operations"]) for method, row in tiny.items()}
    assert runs["PLOT"] < runs["PLOT-DAS"]
    assert operations["PLOT"] < operations["PLOT-DAS"]
    width, hidden = TINY.width, TINY.hidden
    block = 2 * (4 * width * width + 3 * width * hidden)
    recorded = 2 * 3 * forecast.PAIRS * forecast.TOKENS * TINY.depth * block
    assert operations["PLOT"] > recorded, "every prompt of every bank runs once"
    steps = forecast.EPOCHS * (forecast.PAIRS // 64) * 64
    searched = forecast.RANKS * forecast.RESTARTS * forecast.VARIABLES * TINY.depth
    assert operations["Full DAS"] > recorded + searched * steps * block * (TINY.depth - 1) / 2, "and each search trains"


def test_what_no_memory_holds_is_a_dash(rows):
    found, page = rows
    held = {row["model"]: row["holds"] for row in found if (row["target"], row["devices"]) == ("h100", "1")}
    assert held == {"tiny": "yes", "huge": "no"}
    lines = [line for line in page.splitlines() if line.startswith("| huge")]
    assert len(lines) == 3
    assert all("| - |" in line for line in lines)
