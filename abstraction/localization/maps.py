"""Maps: an effect for every variable and site, on named axes, beside what it must exceed.

The axes are those of the tap (layer, position), one of groups of coordinates (head) and one of variables. A map is read
by label, shown as heatmaps, and turned into labelled arrays for other tools.
"""

import importlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real

from abstraction.checks import whole
from abstraction.localization.attribution import rank_agreement

VARIABLE = "variable"
_MOST_TICKS = 12
_NUMBERS = ("values", "low", "high", "pairs", "not_finite")


@dataclass(frozen=True, eq=False)
class Sweep:
    """An effect at every place of a product of named axes; made by `sweep`. All arrays have the shape of `values`.

    Attributes:
      what: what the values are, for people.
      role: of the bank they were measured on.
      dims: names of the axes.
      coords: the labels along each.
      values: the effects, NaN where an outcome is not finite or nothing was counted.
      low: lower end of the 95 % interval over pairs; it knows nothing of the error of a first-order estimate.
      high: upper end.
      pairs: pairs counted.
      not_finite: pairs whose outcome is not finite: misses of an accuracy, and no effect of anything else.
      levels: controls, by name: what an effect must exceed.
      order: None for effects as measured, 1 for first-order estimates.
    """

    what: str
    role: str
    dims: tuple[str, ...]
    coords: Mapping[str, tuple[str, ...]]
    values: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    pairs: Real[np.ndarray, "..."]
    not_finite: Real[np.ndarray, "..."]
    levels: Mapping[str, Float[np.ndarray, "..."]]
    order: int | None = None

    @property
    def exceeds(self) -> Bool[np.ndarray, "..."]:
        """Whether the lower end is above every control; never so for an estimate, which is no measurement.

        Of many places some are above by accident: judge a best one on other pairs.
        """
        if self.order is not None:
            return np.zeros(np.shape(self.values), bool)
        with np.errstate(invalid="ignore"):
            above = [self.low > level for level in self.levels.values()]
        return np.all(above, axis=0) & np.isfinite(self.values)

    def sel(self, **labels: Any) -> "Sweep":
        """Pick places by label: one label drops its axis, a list of labels keeps it.

        Raises:
          ValueError: an axis or a label that is not there.
        """
        if unknown := sorted(set(labels) - set(self.dims)):
            raise ValueError(f"got axes {unknown}, expected some of {list(self.dims)}")
        picked, dims, coords = [], [], {}
        for name in self.dims:
            chosen, kept = self._places(name, labels[name]) if name in labels else (slice(None), self.coords[name])
            picked.append(chosen)
            if kept is not None:
                dims.append(name)
                coords[name] = kept
        take = lambda array: _indexed(array, picked)
        arrays: dict[str, Any] = {name: take(getattr(self, name)) for name in _NUMBERS}
        levels = {name: take(level) for name, level in self.levels.items()}
        return replace(self, dims=tuple(dims), coords=coords, levels=levels, **arrays)

    def _places(self, name: str, label: Any) -> tuple[Any, tuple[str, ...] | None]:
        known = self.coords[name]
        several = isinstance(label, list | tuple | range | np.ndarray)
        wanted = [str(one) for one in (label if several else [label])]
        if missing := [one for one in wanted if one not in known]:
            raise ValueError(f"got {name} {missing}, expected some of {list(known)}")
        places = [known.index(one) for one in wanted]
        return (places, tuple(wanted)) if several else (places[0], None)

    def rows(self) -> list[dict[str, Any]]:
        """Write every place as a row: its labels, its effect, the interval, the pairs and the controls."""
        return self._rows(np.ndindex(self.values.shape))

    def _rows(self, places: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
        exceeds = self.exceeds  # of the whole map: once, not once a row
        return [self._row(place, exceeds) for place in places]

    def _row(self, place: tuple[int, ...], exceeds: Bool[np.ndarray, "..."]) -> dict[str, Any]:
        labels = {name: self.coords[name][index] for name, index in zip(self.dims, place, strict=True)}
        numbers = {"value" if name == "values" else name: getattr(self, name)[place].item() for name in _NUMBERS}
        levels = {name: float(level[place]) for name, level in self.levels.items()}
        return labels | numbers | levels | {"exceeds": bool(exceeds[place])}

    def best(self) -> list[dict[str, Any]]:
        """Return the row of the largest finite effect of every variable, the first of equals.

        It was chosen by its effect here, which is therefore optimistic: judge it on other pairs.

        Raises:
          ValueError: the bank is a test bank, or a variable has no finite effect.
        """
        if self.role == "test":
            raise ValueError("got a map of a test bank to choose from, expected one of a fit or calibration bank")
        found = []
        for places in self._by_variable():
            finite = [place for place in places if np.isfinite(self.values[place])]
            if not finite:
                raise ValueError(f"got no finite effect among {len(places)} places, expected at least one")
            found.append(max(finite, key=lambda place: self.values[place]))
        return self._rows(found)

    def _by_variable(self) -> list[list[tuple[int, ...]]]:
        """List all places of each variable; of all together where there is no such axis."""
        places = list(np.ndindex(self.values.shape))
        if VARIABLE not in self.dims:
            return [places]
        axis = self.dims.index(VARIABLE)
        return [[place for place in places if place[axis] == v] for v in range(self.values.shape[axis])]

    def table(self, most: int = 5) -> str:
        """Write the largest effects of every variable as lines of text, beside their intervals and controls."""
        whole("rows", most)
        lines = [self.what + (" (first order)" if self.order else "")]
        numbers = ("value", "low", "high", *self.levels)
        width = {name: max(len(name), *map(len, self.coords[name])) for name in self.dims}
        head = [name.ljust(width[name]) for name in self.dims] + [f"{name:>9}" for name in numbers]
        lines.append(" ".join([*head, " verdict"]))
        for places in self._by_variable():
            ordered = sorted(places, key=lambda place: -np.nan_to_num(self.values[place], nan=-np.inf))
            for row in self._rows(ordered[:most]):
                cells = [row[name].ljust(width[name]) for name in self.dims] + [f"{row[name]:9.4f}" for name in numbers]
                verdict = "above its controls" if row["exceeds"] else "not above its controls"
                lines.append(" ".join([*cells, f" {verdict if self.order is None else 'an estimate'}"]))
        return "\n".join(lines)

    def agreement(self, other: "Sweep") -> Float[np.ndarray, " V"]:
        """Return how far another map of the same places orders them alike: Spearman's correlation by variable.

        Raises:
          ValueError: a map of other places.
        """
        if (self.dims, dict(self.coords)) != (other.dims, dict(other.coords)):
            raise ValueError(f"got maps over {self.dims} and {other.dims}, expected the same axes and labels")
        rows = [
            np.array([[each.values[place] for place in places] for places in self._by_variable()])
            for each in (self, other)
        ]
        return rank_agreement(*rows)

    def to_xarray(self) -> Any:
        """Return an `xarray.Dataset` of all arrays (extra `labelled`)."""
        xarray = _late("xarray")
        arrays = {name: getattr(self, name) for name in _NUMBERS} | dict(self.levels)
        variables = {name: (self.dims, np.asarray(values)) for name, values in arrays.items()}
        attributes = {"what": self.what, "role": self.role, "order": "measured" if self.order is None else self.order}
        return xarray.Dataset(variables, {name: list(self.coords[name]) for name in self.dims}, attributes)

    def plot(self, ax: Any = None) -> list[Any]:
        """Draw heatmaps on one scale: the first two axes of places, a panel for each label of all others.

        The title of a panel says the highest level of each control there. Places without a finite effect are blank.

        Args:
          ax: matplotlib axes to draw on, where one panel shows everything; by default a new figure.

        Returns:
          The axes of the panels.

        Raises:
          ValueError: axes for one panel, and several are needed.
        """
        pyplot = _late("matplotlib.pyplot")
        shown = [name for name in self.dims if name != VARIABLE][:2]
        panels = list(self._panels([name for name in self.dims if name not in shown]))
        if ax is not None and len(panels) != 1:
            raise ValueError(f"got axes for one panel of {len(panels)}, expected a map of one: pick labels by `sel`")
        axes = _panel_grid(pyplot, len(panels)) if ax is None else [ax]
        scale, image = self._scale(), None
        for each, (title, part) in zip(axes, panels, strict=True):
            image = _heatmap(each, part, shown, scale)
            each.set_title("\n".join(filter(None, (title, _told(part)))), fontsize=8)
        axes[0].figure.colorbar(image, ax=axes, label=self.what)
        return axes

    def _panels(self, others: Sequence[str]) -> Iterator[tuple[str, "Sweep"]]:
        for labels in itertools.product(*(self.coords[name] for name in others)):
            pairs = zip(others, labels, strict=True)
            words = [label if name == VARIABLE else f"{name} {label}" for name, label in pairs]
            yield ", ".join(words), self.sel(**dict(zip(others, labels, strict=True)))

    def _scale(self) -> tuple[float, float]:
        """Return the ends of the colours: 0 to 1 for an accuracy, else those of the effects."""
        finite = self.values[np.isfinite(self.values)]
        if "chance" in self.levels or not finite.size:
            return 0.0, 1.0
        return min(0.0, float(finite.min())), max(0.0, float(finite.max())) or 1.0


def _panel_grid(pyplot: Any, count: int) -> list[Any]:
    columns = min(count, 3)
    rows = -(-count // columns)
    _, grid = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for empty in panels[count:]:
        empty.remove()
    return panels[:count]


def _indexed(array: np.ndarray, picked: Sequence[Any]) -> np.ndarray:
    """Index axis by axis, so that lists of labels do not pair up; the last axes first, so that places stay."""
    for axis in reversed(range(len(picked))):
        if not isinstance(picked[axis], slice):
            array = np.take(array, picked[axis], axis=axis)
    return np.asarray(array)


def _heatmap(axes: Any, part: Sweep, shown: Sequence[str], scale: tuple[float, float]) -> Any:
    values = part.values.reshape([len(part.coords[name]) for name in shown] + [1] * (2 - len(shown)))
    image = axes.imshow(values, aspect="auto", interpolation="nearest", vmin=scale[0], vmax=scale[1], cmap="viridis")
    axes.spines[:].set_visible(False)
    ticks = [(axes.set_yticks, axes.set_ylabel), (axes.set_xticks, axes.set_xlabel)]
    for index, (set_ticks, set_label) in enumerate(ticks):
        labels = part.coords[shown[index]] if index < len(shown) else ()
        step = max(1, -(-len(labels) // _MOST_TICKS))
        set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
        set_label(shown[index] if index < len(shown) else "", fontsize=8)
    return image


def _told(part: Sweep) -> str:
    """Say the highest level of each control in a panel."""
    highest = {name: level[np.isfinite(level)].max(initial=-np.inf) for name, level in part.levels.items()}
    return ", ".join(f"{name} {value:.2f}" for name, value in highest.items() if np.isfinite(value))


def _late(name: str) -> Any:
    """Import a package that few need.

    Raises:
      ModuleNotFoundError: naming the extra that has it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ModuleNotFoundError(f"{package} is not installed: pip install 'abstraction-jax[labelled]'") from error
