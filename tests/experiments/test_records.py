"""Run folders: what is written is read back bit for bit, damage is named and nothing is overwritten."""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from heqruns import VALUES, Inner, Options, plain_unit, snapshot

from experiments.harness import records
from experiments.harness.files import write_atomically
from experiments.harness.records import Row, RunFolder, create_run, digest, open_run
from experiments.harness.results import Results

COLUMNS = ["experiment", "method", "variable", "split", "metric", "seed", "value"]
ARRAYS = {
    "floats": np.array([0.1, -0.0, np.nan, np.inf, 1e-45], np.float32),
    "doubles": np.array([[1 / 3], [math.pi]]),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "flags": np.array([True, False]),
    "large": np.array([2**60 + 1, -1]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", Options(), resume=False)


def test_rows_and_details_survive_writing(run: RunFolder):
    unit = plain_unit()
    run.write_unit(unit)
    read = run.read_unit("seed-1")
    assert read.rows == unit.rows
    assert [math.copysign(1, row.value) for row in read.rows] == [math.copysign(1, value) for value in VALUES]
    assert read.details == unit.details
    assert read.name == "seed-1"


def test_a_part_is_made_once_and_its_details_join_those_of_others(run: RunFolder):
    made: list[str] = []

    def gathered() -> Results:
        results = Results("heq", 1, details={"pairs": {"base": [1]}, "warnings": {"first": "a"}})
        for name in ("flap", "das/4"):

            def make(part: Results, name: str = name) -> None:
                assert part.details == {"pairs": True}
                made.append(name)
                part.add(name, "wx", "test", iia=0.5)
                part.details["warnings"] = {name: "b"}
                part.arrays[f"{name}/mass"] = np.arange(3.0)

            results.part(run, name.replace("/", "-"), make)
        return results

    first, again = gathered(), gathered()
    assert made == ["flap", "das/4"]
    for results in (first, again):
        assert [row.method for row in results.rows] == made
        assert results.details["pairs"] == {"base": [1]}
        assert results.details["warnings"] == {"first": "a", "flap": "b", "das/4": "b"}
        np.testing.assert_array_equal(results.arrays["das/4/mass"], np.arange(3.0))
    other = create_run(run.path.with_name("other"), Options(), resume=False)
    shutil.copytree(run.path / "parts", other.path / "parts")
    with pytest.raises(ValueError, match="the manifest does not list it"):
        first.part(other, "flap", lambda part: None)
    run.write_unit(first.unit)
    assert not (run.path / "parts").exists()


def test_values_that_are_not_numbers_survive_writing(run: RunFolder):
    run.write_unit(plain_unit()._replace(rows=[Row("heq", "m", "wx", "test", "iia", 1, math.nan)]))
    assert math.isnan(run.read_unit("seed-1").rows[0].value)


def test_numpy_details_become_plain_ones(run: RunFolder):
    details = {"array": np.arange(3), "number": np.float32(0.5), "count": np.int64(4), "path": Path("a") / "b"}
    run.write_unit(plain_unit()._replace(details=details))
    expected = {"array": [0, 1, 2], "number": 0.5, "count": 4, "path": "a/b"}
    assert run.read_unit("seed-1").details == expected


def test_details_that_json_cannot_hold_are_refused_and_leave_no_completeplain_unit(run: RunFolder):
    with pytest.raises(TypeError, match="expected something JSON can hold"):
        run.write_unit(plain_unit()._replace(details={"what": object()}))
    assert run.unit_names() == []


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_survive_writing_bit_for_bit(run: RunFolder, name: str):
    run.write_unit(plain_unit(**{name: ARRAYS[name]}))
    read = run.read_unit("seed-1").arrays
    assert list(read) == [name]
    assert (read[name].dtype, read[name].shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)
    assert read[name].tobytes() == ARRAYS[name].tobytes()


def test_metrics_have_the_documented_columns_and_exact_values(run: RunFolder):
    units = [plain_unit("seed-1"), plain_unit("seed-2")]
    run.write_metrics(units)
    with (run.path / "metrics.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == COLUMNS
    read = [Row(*line[:5], int(line[5]), float(line[6])) for line in lines]
    assert read == [row for unit in units for row in unit.rows]
    assert [line[6] for line in lines[: len(VALUES)]] == [repr(value) for value in VALUES]


def test_metrics_are_plain_lines_whatever_the_names_hold(run: RunFolder):
    row = Row("heq", 'a,"b"', "w\nx", "test", "iia", 3, 0.5)
    run.write_metrics([plain_unit()._replace(rows=[row])])
    with (run.path / "metrics.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["heq", 'a,"b"', "w\nx", "test", "iia", "3", "0.5"]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("no replacement")

    path = tmp_path / "metrics.csv"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no replacement"):
        write_atomically(path, b"new content")
    assert snapshot(tmp_path) == {"metrics.csv": b"old"}


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    path = tmp_path / "metrics.csv"
    write_atomically(path, b"old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new content")
    assert snapshot(tmp_path) == {"metrics.csv": b"old"}, "no half-written file stays"


def test_a_unit_without_its_json_file_is_not_complete(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    written = []

    def first_only(path: Path, content: bytes) -> None:
        if written:
            raise OSError("interrupted")
        written.append(path)
        write_atomically(path, content)

    monkeypatch.setattr("experiments.harness.records.write_atomically", first_only)
    with pytest.raises(OSError, match="interrupted"):
        run.write_unit(plain_unit())
    assert [path.name for path in written] == ["seed-1.safetensors"]
    assert run.unit_names() == []


def test_units_are_in_natural_order_and_leftovers_are_not_units(run: RunFolder):
    for name in ("seed-10", "seed-2", "seed-1"):
        run.write_unit(plain_unit(name))
    (run.path / "units" / ".seed-3.json.77.tmp").write_text("{")
    (run.path / "units" / "seed-4.safetensors").write_bytes(b"")
    assert run.unit_names() == ["seed-1", "seed-2", "seed-10"]
    assert [unit.name for unit in run.units()] == ["seed-1", "seed-2", "seed-10"]


def test_a_folder_with_a_run_is_refused_without_resume(run: RunFolder):
    before = snapshot(run.path)
    with pytest.raises(ValueError, match=r"holds a run; expected .*--resume"):
        create_run(run.path, Options(), resume=False)
    assert snapshot(run.path) == before


def test_other_options_are_refused_by_name_on_resume(run: RunFolder):
    before = snapshot(run.path)
    with pytest.raises(ValueError, match="method: got das, expected ot") as caught:
        create_run(run.path, Options(method="das"), resume=True)
    assert "seeds" not in str(caught.value)
    assert snapshot(run.path) == before


def test_only_the_nested_option_that_differs_is_named(run: RunFolder):
    with pytest.raises(ValueError, match=r"inner.*size.*got.*4.*expected.*3") as caught:
        create_run(run.path, Options(inner=Inner(size=4)), resume=True)
    assert "rate" not in str(caught.value)


def test_an_option_the_run_did_not_know_is_refused(run: RunFolder):
    stored = json.loads((run.path / "config.json").read_text())
    del stored["method"]
    run.begin(stored)
    with pytest.raises(ValueError, match="method: got ot"):
        create_run(run.path, Options(), resume=True)


def test_ignored_options_may_differ_and_the_config_stays(run: RunFolder):
    before = snapshot(run.path)
    resumed = create_run(run.path, Options(seeds="1:9"), resume=True, ignore=("seeds",))
    assert resumed.config == {"seeds": "1:3", "method": "ot", "inner": {"size": 3, "rate": 0.5}}
    assert snapshot(run.path) == before
    with pytest.raises(ValueError, match="seeds: got 1:9, expected 1:3"):
        create_run(run.path, Options(seeds="1:9"), resume=True)


def test_a_leg_with_other_weights_is_refused(run: RunFolder):
    run.belongs_to("network", "a" * 64)
    run.belongs_to("network", "a" * 64)
    open_run(run.path).belongs_to("text", "b" * 64)
    with pytest.raises(ValueError, match="got a network of digest bbbbbbbbbbbb, expected aaaaaaaaaaaa"):
        open_run(run.path).belongs_to("network", "b" * 64)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, resume: bool):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        create_run(tmp_path, Options(), resume=resume)
    assert snapshot(tmp_path) == {"thesis.tex": b"x"}


def test_a_file_is_refused_as_a_folder(tmp_path: Path):
    path = tmp_path / "run"
    path.write_text("x")
    with pytest.raises(ValueError, match=r"got .*run"):
        create_run(path, Options(), resume=False)
    assert path.read_text() == "x"


def test_an_empty_folder_becomes_a_run(tmp_path: Path):
    create_run(tmp_path, Options(), resume=False)
    assert open_run(tmp_path).config["method"] == "ot"
    assert open_run(tmp_path).units() == []


@pytest.mark.parametrize("content", ['{"method": "o', "", "[]"])
def test_a_damaged_config_is_named_and_kept(run: RunFolder, content: str):
    (run.path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        create_run(run.path, Options(), resume=True)
    assert (run.path / "config.json").read_text() == content


@pytest.mark.parametrize("content", ['{"invocations": [', '{"schema": 1}', "[]"])
def test_a_damaged_manifest_is_named_and_kept(run: RunFolder, content: str):
    (run.path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        run.add_to_manifest(seeds=[1])
    assert (run.path / "manifest.json").read_text() == content


def test_opening_what_is_not_a_run_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="expected the folder of a run"):
            open_run(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"damaged record .*config\.json"):
        open_run(tmp_path)


def test_the_manifest_gains_one_entry_per_invocation(run: RunFolder):
    run.add_to_manifest(seeds=[1, 2])
    run.add_to_manifest(seeds=[3])
    first, second = json.loads((run.path / "manifest.json").read_text())["invocations"]
    assert (first["seeds"], second["seeds"]) == ([1, 2], [3])
    assert {"git", "versions", "device", "command", "started"} <= set(first)
    assert (first["changed"], second["changed"]) == ([], [])


def test_what_changed_between_two_legs_is_told_and_kept(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    now = records.provenance()
    versions = {**now["versions"], "jax": "0.0.1"}
    git = {"revision": "a" * 40, "dirty": now["git"]["dirty"]}
    device = {**now["device"], "devices": ["TPU v9", "TPU v9"]}
    with monkeypatch.context() as patch:
        patch.setattr(records, "provenance", lambda: {**now, "versions": versions, "git": git, "device": device})
        assert run.add_to_manifest(seeds=[1]) == []
    changed = run.add_to_manifest(seeds=[1])
    assert changed == [
        f"jax 0.0.1 -> {now['versions']['jax']}",
        f"git revision aaaaaaaaaaaa -> {now['git']['revision'][:12] or 'unknown'}",
        f"devices TPU v9, TPU v9 -> {', '.join(now['device']['devices'])}",
    ]
    assert [entry["changed"] for entry in run.invocations] == [[], changed]
    assert run.invocations[0]["versions"]["jax"] == "0.0.1"


SAME = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([0.5, -0.0])}
CHANGES = {
    "name": {"c": SAME["a"], "b": SAME["b"]},
    "names swapped": {"a": SAME["b"], "b": SAME["a"]},
    "dtype": {"a": SAME["a"].astype(np.uint32), "b": SAME["b"]},
    "shape": {"a": SAME["a"].reshape(3, 2), "b": SAME["b"]},
    "value": {"a": SAME["a"] + np.eye(2, 3, dtype=np.int32), "b": SAME["b"]},
    "sign of zero": {"a": SAME["a"], "b": np.array([0.5, 0.0])},
    "one array less": {"a": SAME["a"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_changes_with_names_dtypes_shapes_and_values(change: str):
    assert digest(CHANGES[change]) != digest(SAME)


def test_the_digest_tells_a_scalar_from_an_array_of_one():
    assert digest({"a": np.float32(1)}) != digest({"a": np.ones(1, np.float32)})


def test_the_digest_does_not_depend_on_order_or_memory_layout():
    other = {"b": SAME["b"].copy(), "a": np.asfortranarray(SAME["a"])}
    assert digest(other) == digest(SAME)
    assert len(digest(SAME)) == 64
