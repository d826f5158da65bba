"""Every tutorial runs as a script, as it stands, and leaves its figure; converted, it has the cells of its source."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.mark.tutorial
@pytest.mark.parametrize("script", TUTORIALS, ids=lambda script: script.stem)
def test_a_tutorial_runs_from_top_to_bottom(script, tmp_path, capsys):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    with capsys.disabled():
        print(f"\n{script.name}: {time.monotonic() - start:.0f} s")
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("verdict" in done.stdout) == ("judge(" in script.read_text(encoding="utf-8"))
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 1000


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda script: script.stem)
def test_a_tutorial_has_percent_cells_and_a_page(script):
    source = script.read_text(encoding="utf-8")
    assert source.startswith("# %% [markdown]\n# # ")
    marks = [line for line in source.splitlines() if line.startswith("# %%")]
    assert set(marks) == {"# %%", "# %% [markdown]"}
    assert f"tutorials/{script.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert (script.with_suffix(".png")).is_file(), "the figure that its page shows"
