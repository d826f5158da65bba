"""Files from strangers and files of ours: read whole, or refused with the reason."""

import io
import zipfile

import numpy as np
import pytest

from abstraction.files import kind_of, read_arrays, read_npz, write_arrays


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_an_npz_comes_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3)}
    found = read_npz(_npz(tmp_path / "one.npz", **arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["word"]), "expected real numbers"),
        (np.array([1 + 2j]), "expected real numbers"),
        (np.array([True]), "expected real numbers"),
        (np.zeros(2, [("a", float)]), "expected real numbers"),
        (np.array([object()], object), "expected real numbers"),
        (np.array([1.0, np.nan]), "not finite"),
        (np.array([np.inf]), "not finite"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, array, message):
    with pytest.raises(ValueError, match=f"got an unusable file .*{message}"):
        read_npz(_npz(tmp_path / "one.npz", a=array))


def test_a_header_that_claims_more_than_there_is_is_refused_before_it_is_read(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (2**39,), "fortran_order": False, "descr": "<f8"})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(64))
    with pytest.raises(ValueError, match="claims shape"):
        read_npz(tmp_path / "huge.npz")


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("nothing")
    whole = _npz(tmp_path / "one.npz", a=np.zeros(100)).read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:-60])
    for name in ("text.npz", "short.npz"):
        with pytest.raises(ValueError, match="got an unusable file"):
            read_npz(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "missing.npz")


def test_a_file_says_what_it_holds_and_is_read_as_that_alone(tmp_path):
    write_arrays(tmp_path / "new" / "one", "thing 1", {"a": np.arange(3)}, {"said": [1, None, "x"]})
    assert kind_of(tmp_path / "new" / "one") == "thing 1"
    arrays, about = read_arrays(tmp_path / "new" / "one", "thing 1")
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    assert about == {"said": [1, None, "x"]}
    with pytest.raises(ValueError, match=r"got a file of 'thing 1' .*, expected 'thing 2'"):
        read_arrays(tmp_path / "new" / "one", "thing 2")


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([None])])
def test_arrays_that_are_not_numbers_are_not_written(tmp_path, array):
    with pytest.raises(ValueError, match="expected numbers"):
        write_arrays(tmp_path / "one", "thing 1", {"a": array}, {})
    with pytest.raises(ValueError, match="not JSON"):
        write_arrays(tmp_path / "one", "thing 1", {}, {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "one"
    write_arrays(path, "thing 1", {"a": np.zeros(1)}, {})
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_arrays(path, "thing 1", {"a": np.ones(1)}, {})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["one"]
