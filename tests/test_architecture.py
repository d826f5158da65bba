"""The house rules: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "abstraction"
FLOORS = {
    "typing": 0,
    "pytrees": 1, "randomness": 1, "checks": 1, "files": 1, "sharding": 1.5,
    "causal": 2, "models": 2, "planning": 2,
    "interventions": 3, "training": 3, "tasks": 3,
    "evaluation": 4,
    "localization": 5, "reduction": 5,
    "artifacts": 6, "explaining": 6,
}  # fmt: skip
HOMES = {
    "ott": "localization/couplings.py",
    "orbax": "training/checkpoints.py",
    "flax": "models/",
    "equinox": "models/any_model/equinox_modules.py",
    "haiku": "models/any_model/haiku_modules.py",
    "gguf": "models/gguf_files.py",
    "safetensors": (
        "files.py",
        "reduction/plans.py",
        "models/decoder_files.py",
        "models/hub_export.py",
        "models/weights.py",
    ),
}
OPTIONAL = ("equinox", "haiku")  # never imported: whoever has a module of theirs has imported them
FOLDERS = ("abstraction", "experiments", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EXPERIMENTS = [path for path in SOURCES if ROOT / "experiments" in path.parents]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.py"))
LIBRARY = [path for path in SOURCES if PACKAGE in path.parents]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", node


def _room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_rules_see_the_files():
    assert len(LIBRARY) > 25


ROOMS = [path for path in LIBRARY if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_import_lower_floors_or_their_own_room(path):
    room = _room(path)
    for name, _ in _imports(path):
        if name.startswith("abstraction."):
            other = name.split(".")[1]
            assert other == room or FLOORS[other] < FLOORS[room], f"{path.name} imports {name}"


def test_files_of_a_room_do_not_import_in_circles():
    graph = {}
    for path in LIBRARY:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[name] = {other for other, _ in _imports(path) if other.startswith("abstraction.")}
    done = set()
    while remaining := set(graph) - done:
        free = {name for name in remaining if not (graph[name] & set(graph)) - done}
        assert free, f"a circle among {sorted(remaining)}"
        done |= free


@pytest.mark.parametrize("package", HOMES)
def test_third_party_packages_stay_in_their_file(package):
    users = {
        str(path.relative_to(PACKAGE))
        for path in LIBRARY
        for name, _ in _imports(path)
        if name.split(".")[0] == package
    }
    assert users or package in OPTIONAL, f"nothing imports {package}"
    assert all(user.startswith(HOMES[package]) for user in users), users


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_below_400_lines(path):
    assert path.read_text().count("\n") <= 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_stay_below_60_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_leave_transforms_to_the_library(path):
    calls = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not calls & {"jit", "vmap", "grad", "value_and_grad", "jvp", "vjp"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_file_is_named_after_nothing():
    assert not [path for path in SOURCES if path.stem in {"utils", "common", "helpers", "misc"}]


def test_an_experiment_is_a_room_and_what_rooms_share_knows_none_of_them():
    flat = [path for path in (ROOT / "experiments").iterdir() if path.is_file()]
    assert len(flat) <= 6
    rooms = {path.relative_to(ROOT / "experiments").parts[0] for path in EXPERIMENTS if path not in flat} - {"harness"}
    assert rooms == {"equality", "addition", "mcqa", "ioi", "reduction", "certify", "discovery", "lm_reduction"}
    for room in rooms:
        there = {path.stem for path in (ROOT / "experiments" / room).glob("*.py")}
        assert {"options", "experiment"} <= there, room
    for path in (ROOT / "experiments" / "harness").rglob("*.py"):
        for name, _ in _imports(path):
            assert not name.startswith("experiments.") or name.startswith("experiments.harness"), f"{path.name}: {name}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_of_experiments_take_seven_arguments_at_most(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.args) + len(node.args.kwonlyargs) + len(node.args.posonlyargs)
            assert count - (node.args.args[:1] != [] and node.args.args[0].arg == "self") <= 7, node.name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_import_the_library_and_not_the_experiments(path):
    assert not [name for name, _ in _imports(path) if name.split(".")[0] == "experiments"]
