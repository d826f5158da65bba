"""How every figure looks: one style, sizes of a paper's columns, and a colour per method that never changes.

Colours are Okabe and Ito's, which the colour-blind tell apart; where there are more methods than colours, dashes and
markers tell those of one colour apart. Variants of the paper are hatched. A control is a grey dashed line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abstraction.files import replaced

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of a column, and of both, in inches."""
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C",
)  # fmt: skip
_RC: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "lines.linewidth": 1.2, "lines.markersize": 3.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "pdf.fonttype": 42, "hatch.linewidth": 0.5,
    "legend.frameon": False, "savefig.dpi": 200, "image.cmap": "viridis",
}  # fmt: skip
plt.rcParams.update(_RC)


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    linestyle: str = "-"
    marker: str = "o"
    hatch: str = ""

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}

    @property
    def bar(self) -> dict[str, Any]:
        """Arguments of `Axes.barh`."""
        paper = {"facecolor": "white", "edgecolor": self.color} if self.hatch else {"color": self.color}
        return {**paper, "hatch": self.hatch}


LOOKS = {
    # what the causal variables are localised by
    "plot-ot": Look(BLUE), "plot-uot": Look(BLUE, "--", "s"), "plot-stage-a": Look(BLUE, ":", "v"),
    "plot-native": Look(BLUE), "plot-pca": Look(BLUE, "--", "s"), "plot": Look(BLUE),
    "plot-native-fitted": Look(SKY), "plot-pca-fitted": Look(SKY, "--", "s"), "readwrite": Look(SKY, ":", "v"),
    "plot-das": Look(ORANGE), "plot-native-das": Look(ORANGE, "--", "s"), "plot-pca-das": Look(ORANGE, ":", "v"),
    "plot-oblique-das": Look(ORANGE, "-.", "D"), "das": Look(VERMILLION), "full-das": Look(VERMILLION),
    "oblique-das": Look(VERMILLION, "-.", "D"), "boundless-das": Look(PURPLE), "dbm": Look(PURPLE, "--", "s"),
    "dbm-pca": Look(PURPLE, ":", "v"), "cosine": Look(GREEN), "brute-force": Look(GREEN, "--", "s"),
    "row-argmin": Look(GREEN, ":", "v"), "gw": Look(GREEN, "-.", "D"), "fgw": Look(GREEN, "-", "^"),
    "full-state": Look(GREY), "control-identity": Look(GREY, "--", "s"), "transferred": Look(GREEN),
    # what networks are reduced by
    "cmr": Look(BLUE), "cmr-closed": Look(BLUE, "--", "s"), "cmr-kl": Look(BLUE, ":", "v"),
    "obs-affine": Look(SKY), "kl-const": Look(SKY, "--", "s"), "logit-const": Look(SKY, ":", "v"),
    "joint-const": Look(SKY, "-.", "D"), "cip-affine": Look(ORANGE), "cip-const": Look(ORANGE, "--", "s"),
    "vbp": Look(VERMILLION), "vbp-bias": Look(VERMILLION, "--", "s"), "vbp-affine": Look(VERMILLION, ":", "v"),
    "vbp-zero": Look(VERMILLION, "-.", "D"), "magnitude": Look(GREEN), "taylor": Look(GREEN, "--", "s"),
    "wanda": Look(GREEN, ":", "v"), "obd": Look(PURPLE), "flap": Look(PURPLE, "--", "s"),
    "flap-zero": Look(PURPLE, ":", "v"), "wanda-zero": Look(GREEN, "-.", "D"), "magnitude-zero": Look(GREEN, "-", "^"),
    "random-zero": Look(GREY, ":", "v"), "random": Look(GREY), "random-affine": Look(GREY, "--", "s"),
    "dense": Look(BLACK, "--"),
    # what is told apart in a panel of its own
    "betting": Look(BLUE), "betting-two-sided": Look(SKY, "--", "s"), "hoeffding": Look(GREY, ":", "v"),
}  # fmt: skip
VARIABLES = (Look(BLUE), Look(VERMILLION, "--", "s"), Look(GREEN, ":", "v"), Look(PURPLE, "-.", "D"))
"""Looks of causal variables, in their order."""
_VARIANTS = ("-paper", "-v1", "-v4")


def look(method: str) -> Look:
    """Return how a method is drawn, always the same; a variant of the paper looks like ours, hatched."""
    for ending in _VARIANTS:
        if method.endswith(ending):
            return LOOKS.get(method.removesuffix(ending), Look(GREY))._replace(hatch="/////")
    return LOOKS.get(method, Look(GREY))


def panels(
    rows: int, columns: int, *, height: float, width: float = DOUBLE, count: int | None = None, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Make a grid of panels; those after `count` are left out. `height` is of one row, in inches."""
    with plt.rc_context(_RC):
        figure, grid = plt.subplots(
            rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained", **shared
        )
    places = list(grid.flat)
    for axes in places[count:] if count is not None else []:
        axes.remove()
    return figure, places[:count]


def level(axes: Axes, value: float, label: str, *, vertical: bool = False) -> None:
    """Draw a level to compare with: chance, a control, what was asked for."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=GREY, linestyle="--", linewidth=0.8, zorder=0.5, label=label)


def band(axes: Axes, places: Sequence[float], ends: tuple[Any, Any], method: str) -> None:
    """Draw an interval around a method's line."""
    axes.fill_between(places, *ends, color=look(method).color, alpha=0.15, linewidth=0)


def heatmap(axes: Axes, values: np.ndarray, *, most: float = 1.0) -> Any:
    """Draw an array from 0 to `most`, the same in every panel of a figure; returns what a colour bar is made of."""
    image = axes.imshow(values, aspect="auto", vmin=0.0, vmax=most, interpolation="nearest")
    axes.spines[:].set_visible(False)
    return image


def color_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str) -> None:
    """Draw the one scale of all panels."""
    figure.colorbar(image, ax=list(axes), label=label, fraction=0.03, pad=0.01)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 5) -> None:
    """Draw one legend for all panels, below them, each name once."""
    named: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=min(columns, len(named)), fontsize=7
        )


def save_figure(folder: Path, name: str, figure: Figure) -> list[Path]:
    """Write a figure as PNG and PDF, each under its name only when complete, and close it."""
    files = [folder / f"{name}.{ending}" for ending in ("png", "pdf")]
    folder.mkdir(parents=True, exist_ok=True)
    # No time of writing in a PDF: the same records make the same file.
    facts = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    try:
        for path in files:
            kind = path.suffix[1:]
            with plt.rc_context(_RC), replaced(path) as temporary:
                figure.savefig(temporary, bbox_inches="tight", format=kind, metadata=facts[kind])
    finally:
        plt.close(figure)
    return files
