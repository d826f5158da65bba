"""Deterministic causal models: variables, mechanisms, `do`, and interchange interventions.

A causal model has input variables and, in topological order, one mechanism per other variable,

    Z_j = f_j(parents of Z_j).

`do(Z_i <- z)` replaces the mechanism of Z_i by the value z and recomputes its descendants. The interchange
intervention sets Z_i to the value it takes on a source input, in a run on the base input:

    y(b; Z_i <- z_i(s))                                                       (PLOT, Sec. 2; Geiger et al. 2021)

Mechanisms are functions of whole arrays, so one call evaluates any number of settings; with `jax.numpy`
operations inside they can be jitted and vmapped, with NumPy arrays they run as NumPy.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from abstraction.typing import Setting


@dataclass(frozen=True)
class Mechanism:
    """One equation: `name = function(*parents)`, elementwise over leading axes."""

    name: str
    parents: tuple[str, ...]
    function: Callable[..., Any]


@dataclass(frozen=True)
class CausalModel:
    """A deterministic structural causal model; build it with `causal_model`.

    Attributes:
      inputs: names of the exogenous variables.
      mechanisms: equations in topological order.
      output: the variable an intervention is judged by.
    """

    inputs: tuple[str, ...]
    mechanisms: tuple[Mechanism, ...]
    output: str

    @property
    def variables(self) -> tuple[str, ...]:
        """All names, inputs first, then in topological order."""
        return self.inputs + tuple(mechanism.name for mechanism in self.mechanisms)

    def run(self, inputs: Setting) -> dict[str, Any]:
        """Evaluate every variable on `inputs` (each value of shape `[...]`)."""
        return self.do(inputs)

    def do(self, inputs: Setting, *interventions: Setting) -> dict[str, Any]:
        """Evaluate every variable with some of them held fixed.

        Args:
          inputs: a value for each input variable.
          interventions: `{name: value}`; where two name the same variable, the last one wins.

        Returns:
          The value of every variable.

        Raises:
          ValueError: an input is missing, a name is not a variable of this model, or a mechanism is given among the
            inputs, where it would be computed over.
        """
        fixed = {name: value for intervention in interventions for name, value in intervention.items()}
        self._check_names(fixed, "an intervention on")
        strange = [name for name in inputs if name not in self.inputs]
        if strange:
            raise ValueError(f"got inputs {strange}, expected names among {list(self.inputs)}")
        missing = [name for name in self.inputs if name not in inputs and name not in fixed]
        if missing:
            raise ValueError(f"got inputs {sorted(inputs)}, expected a value for each of {list(self.inputs)}")
        values = {name: fixed.get(name, inputs.get(name)) for name in self.inputs}
        for mechanism in self.mechanisms:
            if mechanism.name in fixed:
                values[mechanism.name] = fixed[mechanism.name]
            else:
                values[mechanism.name] = mechanism.function(*(values[parent] for parent in mechanism.parents))
        return values

    def interchange(self, base: Setting, sources: Mapping[str, Setting]) -> dict[str, Any]:
        """Run `base` with each named variable set to the value it takes on its own source.

        Args:
          base: inputs of the run that is intervened on.
          sources: `{variable: inputs of the run its value is taken from}`; several variables are set jointly.

        Returns:
          The value of every variable after the intervention.
        """
        self._check_names(sources, "an interchange of")
        return self.do(base, {name: self.run(source)[name] for name, source in sources.items()})

    def _check_names(self, names: Mapping[str, Any], what: str) -> None:
        unknown = [name for name in names if name not in self.variables]
        if unknown:
            raise ValueError(f"got {what} {unknown}, expected variables among {list(self.variables)}")


def causal_model(inputs: tuple[str, ...], output: str, **mechanisms: Callable[..., Any]) -> CausalModel:
    """Build a causal model from functions whose parameter names are the parents.

    Example: `causal_model(("a", "b"), "y", y=lambda a, b: a & b)`.

    Args:
      inputs: names of the input variables.
      output: name of the output variable.
      mechanisms: one function per endogenous variable, each after its parents.

    Raises:
      ValueError: a parent is unknown or comes later, a name is used twice, a mechanism has no named parameters, or
        the output does not exist.
    """
    if isinstance(inputs, str) or not inputs or not all(isinstance(name, str) for name in inputs):
        raise ValueError(f"got inputs {inputs!r}, expected a tuple of one or more names")
    known = list(inputs)
    equations = []
    for name, function in mechanisms.items():
        parents = _parents(name, function)
        if name in known:
            raise ValueError(f"got a second definition of {name!r}, expected each variable once")
        unknown = [parent for parent in parents if parent not in known]
        if unknown:
            raise ValueError(f"got parents {unknown} of {name!r}, expected variables defined before it: {known}")
        equations.append(Mechanism(name, parents, function))
        known.append(name)
    if output not in known:
        raise ValueError(f"got output {output!r}, expected one of {known}")
    if len(set(inputs)) != len(inputs):
        raise ValueError(f"got inputs {inputs}, expected each name once")
    return CausalModel(tuple(inputs), tuple(equations), output)


def _parents(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Read the parents off a mechanism: its parameters, each of which must have a name."""
    if not callable(function):
        raise ValueError(f"got mechanism {function!r} of {name!r}, expected a function of its parents")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ValueError(f"got {function!r} as {name!r}, expected a function whose parameters are named") from None
    unnamed = [str(p) for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY)]
    if unnamed:
        raise ValueError(f"got parameters {unnamed} of {name!r}, expected the names of its parents")
    return tuple(p.name for p in parameters)
