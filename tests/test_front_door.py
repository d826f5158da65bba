"""The front door: what `abstraction` offers, what importing it costs, and what an installation puts on the path."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import abstraction

PACKAGE = Path(abstraction.__file__).parent


@pytest.mark.parametrize("name", abstraction.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(abstraction, name)
    assert value.__doc__
    assert value is getattr(importlib.import_module(abstraction._HOMES[name]), name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {
        (alias.asname, f"{node.module}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("abstraction.")
        for alias in node.names
    }
    assert told == set(abstraction._HOMES.items())
    assert len(told) <= 34


def test_a_name_that_is_not_there_is_answered_by_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'plott'; it has .*plot"):
        abstraction.plott  # noqa: B018


def test_what_other_libraries_give_every_object_does_not_shadow_a_name():
    code = (
        "import pytest; nnsight = pytest.importorskip('nnsight'); import abstraction; "
        "from abstraction.artifacts import save; print(hasattr(object(), 'save'), abstraction.save is save)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    if done.returncode:
        pytest.skip(f"needs nnsight: {done.stderr.strip().splitlines()[-1][:80]}")
    assert done.stdout.split()[-1] == "True"


def test_exports_are_few():
    rooms = [importlib.import_module(f"abstraction.{path.parent.name}") for path in PACKAGE.glob("*/__init__.py")]
    names = [name for room in rooms for name in getattr(room, "__all__", ())]
    assert len(names) + len(abstraction.__all__) <= 185


def test_importing_pulls_in_no_solver_and_no_checkpoints():
    code = (
        "import sys, abstraction, abstraction.localization, abstraction.reduction, abstraction.training; "
        "print([name for name in ('ott', 'orbax', 'huggingface_hub', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
