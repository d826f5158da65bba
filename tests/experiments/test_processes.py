"""`--processes`: what a run does that several processes share; they themselves are in `test_meshes`."""

from pathlib import Path

import jax
import numpy as np
import pytest
from heqruns import SMALL, command

from experiments.harness import processes
from experiments.harness.processes import any_of, as_first, copied, is_first, join


@pytest.mark.parametrize(
    "text", ["", "two", "host:1", "host:1,0", "host,0,2", "host:1,2,2", "host:1,-1,2", "host:1,a,2"]
)
def test_processes_that_are_none_are_refused(text: str):
    with pytest.raises(ValueError, match="--processes"):
        join(text)


def test_processes_are_joined_as_a_flag_says(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **named: asked.append((given, named)))
    join("auto")
    join("host:1234,1,4")
    assert asked == [((), {}), (("host:1234",), {"num_processes": 4, "process_id": 1})]


def test_a_wrong_flag_is_one_line():
    ended = command("heq", *SMALL, "--processes", "two")
    assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert "got --processes two, expected auto, or HOST:PORT,INDEX,COUNT" in ended.err


def test_a_process_alone_is_the_first_and_agrees_with_itself(tmp_path: Path):
    assert is_first()
    assert (any_of(True), any_of(False)) == (True, False)
    weights = {"a": np.ones(2)}
    assert as_first(weights) is weights
    with copied(tmp_path, lambda: "begun", str) as run:
        assert run == "begun"


class _Pretended:
    """Several processes, of which this is one; the others answer as told."""

    def __init__(self, patch: pytest.MonkeyPatch, index: int, others: bool):
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(jax, "process_index", lambda: index)
        patch.setattr(processes.multihost_utils, "process_allgather", lambda asked: np.array([asked, others]))
        patch.setattr(processes.multihost_utils, "broadcast_one_to_all", self._told)
        self.sent: list[np.ndarray] = []
        self.given: list[np.ndarray] = []

    def _told(self, own: np.ndarray) -> np.ndarray:
        self.sent.append(own)
        return self.given.pop(0) if self.given else own


def _begin(folder: Path) -> str:
    (folder / "parts" / "seed-1").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "parts" / "seed-1" / "das.json").write_text("[1]")
    (folder / ".lock").touch()
    return "begun"


def test_the_first_works_in_its_folder_and_others_in_copies_that_are_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        first = _Pretended(patch, 0, others=False)
        with copied(tmp_path, lambda: _begin(tmp_path), lambda folder: pytest.fail("no copy")) as run:
            assert run == "begun"
    other = _Pretended(monkeypatch, 1, others=False)
    other.given = first.sent
    with copied(Path("not here"), lambda: pytest.fail("the first begins"), lambda folder: folder) as folder:
        assert isinstance(folder, Path)
        found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        assert found == {"config.json": "{}", "parts/seed-1/das.json": "[1]"}
    assert not folder.exists()


def test_where_the_first_refuses_all_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse() -> str:
        raise ValueError("got a folder that is not empty")

    with monkeypatch.context() as patch:
        _Pretended(patch, 0, others=False)
        with pytest.raises(ValueError, match="not empty"), copied(tmp_path, refuse, str):
            pass
    _Pretended(monkeypatch, 1, others=True)
    with pytest.raises(ValueError, match="first process did not begin"), copied(tmp_path, refuse, str):
        pass
