"""Damaged run folders: what was changed after it was written is named, and a killed run leaves nothing that blocks."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heqruns import Options, plain_unit, snapshot

from experiments.harness.files import checksum, locked, remove_leftovers, sealed, to_json
from experiments.harness.records import RunFolder, create_run, open_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", Options(), resume=False)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _drop_the_rows(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["rows"]
    path.write_text(json.dumps(content))


def _drop_a_column(path: Path) -> None:
    content = json.loads(path.read_text())
    content["rows"][0].pop()
    path.write_text(json.dumps(content))


def _edited(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change what a record says, and leave its checksum."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content, indent=2))

    return spoil


def _forged(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change what a record says, and seal it again."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_bytes(sealed(content))

    return spoil


def _copy_from_the_other_seed(path: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(path.with_name(f"seed-2{suffix}"), path.with_suffix(suffix))


DAMAGES = {
    "cut json": ("seed-1.json", _cut),
    "null": ("seed-1.json", lambda path: path.write_text("null")),
    "deep nesting": ("seed-1.json", lambda path: path.write_text("[" * 100_000)),
    "deep nesting of objects": ("seed-1.json", lambda path: path.write_text('{"a":' * 100_000)),
    "no text": ("seed-1.json", lambda path: path.write_bytes(b"\xff\xfe{")),
    "a folder": ("seed-1.json", lambda path: (path.unlink(), path.mkdir())),
    "edited value": ("seed-1.json", _edited(lambda content: content["rows"][3].__setitem__(6, 0.5))),
    "last bit of a value": (
        "seed-1.json",
        _edited(lambda content: content["rows"][1].__setitem__(6, 1 / 3 + 2**-54)),
    ),
    "not a number put in": ("seed-1.json", _edited(lambda content: content["rows"][0].__setitem__(6, math.nan))),
    "removed row": ("seed-1.json", _edited(lambda content: content["rows"].pop())),
    "rows swapped": ("seed-1.json", _edited(lambda content: content["rows"].reverse())),
    "no rows": ("seed-1.json", _edited(lambda content: content["rows"].clear())),
    "another method": ("seed-1.json", _edited(lambda content: content["rows"][0].__setitem__(1, "m1"))),
    "edited details": ("seed-1.json", _edited(lambda content: content["details"].update(note="y"))),
    "another schema": ("seed-1.json", _edited(lambda content: content.update(schema=99))),
    "no checksum": ("seed-1.json", _edited(lambda content: content.pop("sha256"))),
    "checksum made to fit": ("seed-1.json", _forged(lambda content: content["rows"].pop())),
    "copied from another seed": ("seed-1.json", _copy_from_the_other_seed),
    "empty json": ("seed-1.json", lambda path: path.write_text("")),
    "json of another kind": ("seed-1.json", lambda path: path.write_text("[]")),
    "json without rows": ("seed-1.json", _drop_the_rows),
    "row without value": ("seed-1.json", _drop_a_column),
    "cut arrays": ("seed-1.safetensors", _cut),
    "missing arrays": ("seed-1.safetensors", Path.unlink),
    "other arrays": ("seed-1.safetensors", _flip_a_bit),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_nothing_is_changed(run: RunFolder, damage: str):
    run.write_unit(plain_unit())
    run.write_unit(plain_unit("seed-2"))
    name, spoil = DAMAGES[damage]
    spoil(run.path / "units" / name)
    before = snapshot(run.path)
    # The JSON file is named whichever file is damaged: deleting it is what makes the unit be computed again.
    for read in (lambda: run.read_unit("seed-1"), run.units, lambda: create_run(run.path, Options(), resume=True)):
        with pytest.raises(ValueError, match=r"damaged record .*units/seed-1\.json"):
            read()
    assert snapshot(run.path) == before
    assert run.read_unit("seed-2").rows == plain_unit().rows


def test_a_unit_of_another_run_is_refused(run: RunFolder, tmp_path: Path):
    other = create_run(tmp_path / "other", Options(method="das"), resume=False)
    other.write_unit(plain_unit())
    run.write_unit(plain_unit(b=np.arange(4.0)))
    for name in ("seed-1.json", "seed-1.safetensors"):
        shutil.copy(other.path / "units" / name, run.path / "units" / name)
    with pytest.raises(ValueError, match=r"seed-1\.json \(the manifest does not list it"):
        run.units()


@pytest.mark.parametrize("name", ["manifest.json", "units/seed-1.json"])
def test_a_record_of_another_schema_is_refused_whatever_its_checksum(run: RunFolder, name: str):
    run.write_unit(plain_unit())
    content = json.loads((run.path / name).read_text()) | {"schema": 99}
    content.pop("sha256")
    (run.path / name).write_bytes(to_json(content | {"sha256": checksum(content)}))
    with pytest.raises(ValueError, match=rf"damaged record .*{name} \(got schema 99, expected"):
        run.units()


def test_a_unit_copied_under_another_name_is_called_by_its_own(run: RunFolder):
    run.write_unit(plain_unit("seed-1"))
    run.write_unit(plain_unit("seed-2"))
    _copy_from_the_other_seed(run.path / "units" / "seed-1.json")
    with pytest.raises(ValueError, match=r"seed-1\.json \(it is seed-2, copied under another name\)"):
        run.units()


WHOLE = {
    "manifest missing": ("manifest.json", Path.unlink),
    "manifest edited": ("manifest.json", _edited(lambda content: content["units"].clear())),
    "manifest of another schema": ("manifest.json", _edited(lambda content: content.update(schema=1))),
    "manifest without units": ("manifest.json", _forged(lambda content: content.pop("units"))),
    "manifest null": ("manifest.json", lambda path: path.write_text("null")),
    "config edited": ("config.json", _edited(lambda content: content.update(method="das"))),
    "config deep": ("config.json", lambda path: path.write_text("[" * 100_000)),
}


@pytest.mark.parametrize("damage", WHOLE)
def test_damage_to_what_holds_for_the_whole_run_is_named(run: RunFolder, damage: str):
    run.write_unit(plain_unit())
    name, spoil = WHOLE[damage]
    spoil(run.path / name)
    before = snapshot(run.path)
    for read in (lambda: open_run(run.path), lambda: create_run(run.path, Options(), resume=True)):
        with pytest.raises(ValueError, match=rf"damaged record .*{name} .*another folder"):
            read()
    assert snapshot(run.path) == before


def test_a_run_killed_before_its_manifest_goes_on(run: RunFolder):
    (run.path / "manifest.json").unlink()
    again = create_run(run.path, Options(), resume=True)
    again.write_unit(plain_unit())
    assert open_run(run.path).unit_names() == ["seed-1"]


def test_a_unit_killed_between_manifest_and_record_is_computed_again(run: RunFolder):
    run.write_unit(plain_unit())
    (run.path / "units" / "seed-1.json").unlink()
    resumed = create_run(run.path, Options(), resume=True)
    assert (resumed.unit_names(), resumed.lost_units()) == ([], ["seed-1"])
    resumed.write_unit(plain_unit(b=np.arange(4.0)))
    assert list(resumed.read_unit("seed-1").arrays) == ["b"]
    assert resumed.lost_units() == []


def test_a_folder_that_a_killed_run_left_before_its_options_is_taken_over(tmp_path: Path):
    (tmp_path / "units").mkdir()
    (tmp_path / ".config.json.4711.tmp").write_text('{"seeds"')
    (tmp_path / ".lock").write_text("")
    run = create_run(tmp_path, Options(), resume=False)
    assert run.config["method"] == "ot"


@pytest.mark.parametrize("name", [".profile", ".mine.tmp", "notes.tmp", ".config.json.x.tmp"])
def test_hidden_files_of_others_are_not_leftovers(tmp_path: Path, name: str):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        create_run(tmp_path, Options(), resume=False)
    assert snapshot(tmp_path) == {name: b"x"}


def test_leftovers_are_removed_and_nothing_else(run: RunFolder):
    run.write_unit(plain_unit())
    before = snapshot(run.path)
    for name in (".metrics.csv.77.tmp", "units/.seed-3.json.78.tmp", "figures/.accuracy.png.79.tmp"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("{")
    (run.path / ".mine.tmp").write_text("x")
    remove_leftovers(run.path)
    assert snapshot(run.path) == {**before, ".mine.tmp": b"x"}


def test_the_second_writer_of_a_folder_is_refused_until_the_first_ends(tmp_path: Path):
    with locked(tmp_path):
        with (
            pytest.raises(ValueError, match=r"got .*, which another process is writing to; expected"),
            locked(tmp_path),
        ):
            pass
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path: Path):
    code = (
        "import os, pathlib, signal, sys; from experiments.harness.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
