"""What a search found, in a file that another session can trust.

    save(found.choice, path, network=network, data=evidence)        load(path, network)

A file holds arrays and a JSON header: what it is, of which network (SHA-256 of the weights), which tap, depths and
variables, how it was chosen and on which pairs (SHA-256 of the bank), and the versions that made it. Loading a handle
or a choice asks for the network and refuses another one: a handle means nothing elsewhere.

| kind | value |
|---|---|
| handle | `Handle`, single or batched |
| choice | `Choice`: handles, settings, tallies |
| plans | `Plans`: couplings and their axes |
| bank | `PairBank` |
| network | `Network` of any model of the library, also reduced ones of blocks of different shapes |
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import abstraction
from abstraction.artifacts.descriptions import described, model_of
from abstraction.causal import PairBank
from abstraction.causal.pairs import digest
from abstraction.evaluation import Recorded, Tally
from abstraction.files import kind_of, read_arrays, write_arrays
from abstraction.interventions import Basis, Handle
from abstraction.interventions.handles import check_depths
from abstraction.localization import Choice
from abstraction.localization.couplings import Coupling
from abstraction.localization.rules import Plans
from abstraction.models import Network
from abstraction.models.network import check_network, params_digest

Arrays = dict[str, np.ndarray]
_HANDLE = ("weight", "basis.encoder", "basis.decoder", "basis.mean", "depth")
_COUPLING = ("plan", "epsilon", "converged", "marginal_error", "mass", "saturated", "clamped")
_CHOICE = ("ties", "ambiguous", "scores", "not_finite")
_TALLY = ("hits", "pairs", "loss")


def save(
    value: Handle | Choice | Plans | PairBank | Network,
    path: str | Path,
    *,
    network: Network | None = None,
    data: Recorded | PairBank | None = None,
) -> None:
    """Write a value to a file, which appears under its name only when complete.

    Args:
      value: what to keep.
      path: the file.
      network: the network that a handle or a choice belongs to, or that a network was made from; by default itself.
      data: the pairs it was chosen on, of which the digest is kept.

    Raises:
      ValueError: a value that no file is for, a handle or a choice without its network, or one that does not fit it.
    """
    name = next((name for name, kind in _KINDS.items() if isinstance(value, kind.type)), None)
    if name is None:
        expected = sorted(kind.type.__name__ for kind in _KINDS.values())
        raise ValueError(f"got a {type(value).__name__} to save, expected one of {expected}")
    about: dict[str, Any] = {"versions": _versions()}
    if isinstance(value, Handle | Choice):
        if network is None:
            raise ValueError(f"got a {name} without its network, expected save({name}, path, network=...)")
        _require_fit(value, network)
        about["network"] = params_digest(network.params)
    if isinstance(value, Network):
        about["made_from"] = params_digest((network or value).params)
    if data is not None:
        about["data"] = digest(data.bank if isinstance(data, Recorded) else data)
    arrays, more = _KINDS[name].parts(value)
    write_arrays(path, f"{name} {_VERSION}", arrays, about | more)


def load(path: str | Path, network: Network | None = None) -> Any:
    """Read what `save` has written.

    Args:
      path: the file.
      network: the network that a handle or a choice belongs to, or that a network is said to be made from.

    Raises:
      ValueError: a damaged file, one of another kind or version, a handle or a choice of another network, or a network
        made from another.
      FileNotFoundError: there is no such file.
    """
    name, _, version = kind_of(path).partition(" ")
    if name not in _KINDS or version != _VERSION:
        known = [f"{kind} {_VERSION}" for kind in _KINDS]
        raise ValueError(f"got a file of {name!r} version {version!r} in {path}, expected one of {known}")
    arrays, about = read_arrays(path, f"{name} {_VERSION}")
    if name in _BOUND:
        if network is None:
            raise ValueError(f"got a file of a {name} without its network, expected load(path, network)")
        found, given = about.get("network"), params_digest(network.params)
        if found != given:
            raise ValueError(
                f"got a {name} of a network with weights {str(found)[:12]} in {path}, expected {given[:12]}, those of "
                "the network it is loaded for"
            )
    if name == "network" and network is not None:
        made, given = about.get("made_from"), params_digest(network.params)
        if made != given:
            raise ValueError(f"got a network made from weights {str(made)[:12]} in {path}, expected {given[:12]}")
    try:
        value = _KINDS[name].whole(arrays, about)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"got an incomplete file of a {name} in {path}, expected all its parts: {error!r}") from error
    if network is not None and isinstance(value, Handle | Choice):
        _require_fit(value, network)
    return value


def description(path: str | Path) -> dict[str, Any]:
    """Return the header of a file: of which network and pairs it is, how it was chosen, with which versions.

    Raises:
      ValueError: the file is damaged, or is not one of ours.
      FileNotFoundError: there is no such file.
    """
    kind = kind_of(path)
    return {"kind": kind, **read_arrays(path, kind)[1]}


def _require_fit(value: Handle | Choice, network: Network) -> None:
    """Refuse a handle, single or batched, that does not fit its tap."""
    handle = value.handles if isinstance(value, Choice) else value
    if handle.tap not in network.taps:
        raise ValueError(f"got a handle of tap {handle.tap!r}, expected one of {sorted(network.taps)}")
    tap, shape = network.taps[handle.tap], np.shape(handle.weight)
    features = tap.width if handle.basis is None else np.shape(handle.basis.encoder)[-1]
    own = (features,) if handle.depth is not None else (tap.depth, features)
    width = tap.width if handle.basis is None else np.shape(handle.basis.encoder)[-2]
    if shape[-len(own) :] != own or width != tap.width:
        raise ValueError(f"got handle weights of shape {shape} and width {width}, expected {own} and {tap.width}")
    if handle.depth is not None:
        check_depths(np.asarray(handle.depth), tap)


def _handle_parts(handle: Handle) -> tuple[Arrays, dict[str, Any]]:
    basis = handle.basis
    leaves = (handle.weight, *((None,) * 3 if basis is None else (basis.encoder, basis.decoder, basis.mean)))
    named = zip(_HANDLE, (*leaves, handle.depth), strict=True)
    return {name: np.asarray(leaf) for name, leaf in named if leaf is not None}, {"tap": handle.tap}


def _whole_handle(arrays: Arrays, about: Mapping[str, Any]) -> Handle:
    weight, *basis = (arrays.get(name) for name in _HANDLE[:4])
    if weight is None or len({part is None for part in basis}) != 1:
        raise KeyError("weight" if weight is None else "basis")
    whole = None if basis[0] is None else Basis(*basis)  # pyright: ignore[reportArgumentType]
    return Handle(about["tap"], weight, whole, arrays.get("depth"))


def _choice_parts(choice: Choice) -> tuple[Arrays, dict[str, Any]]:
    arrays, about = _handle_parts(choice.handles)
    arrays |= {name: np.asarray(getattr(choice, name)) for name in _CHOICE}
    arrays |= {f"tally.{name}": np.asarray(getattr(choice.tally, name)) for name in _TALLY}
    kept = {"variables": choice.variables, "candidates": choice.candidates, "evaluated": choice.evaluated}
    return arrays, about | {name: described(value) for name, value in kept.items()} | {
        "settings": [described(setting) for setting in choice.settings]
    }


def _whole_choice(arrays: Arrays, about: Mapping[str, Any]) -> Choice:
    return Choice(
        variables=tuple(about["variables"]),
        handles=_whole_handle(arrays, about),
        settings=tuple(dict(setting) for setting in about["settings"]),
        tally=Tally(*(arrays[f"tally.{name}"] for name in _TALLY)),
        candidates=about["candidates"],
        evaluated=about["evaluated"],
        **{name: arrays[name] for name in _CHOICE},
    )


def _plans_parts(plans: Plans) -> tuple[Arrays, dict[str, Any]]:
    coupling = jax.device_get(plans.coupling)
    arrays = {name: np.asarray(getattr(coupling, name)) for name in _COUPLING}
    return arrays, {"axes": described(plans.axes)}


def _whole_plans(arrays: Arrays, about: Mapping[str, Any]) -> Plans:
    axes = tuple((name, tuple(values)) for name, values in about["axes"])
    return Plans(Coupling(**{name: arrays[name] for name in _COUPLING}), axes)


def _bank_parts(bank: PairBank) -> tuple[Arrays, dict[str, Any]]:
    arrays = {name: np.asarray(getattr(bank, name)) for name in ("factual", "labels", "eligible")}
    for side in ("base", "source"):
        arrays |= {f"{side}.{name}": np.asarray(values) for name, values in getattr(bank, side).items()}
    about = {"variables": list(bank.variables), "role": bank.role, "inputs": list(bank.base)}
    return arrays, about | {"digest": digest(bank)}


def _whole_bank(arrays: Arrays, about: Mapping[str, Any]) -> PairBank:
    base, source = ({name: arrays[f"{side}.{name}"] for name in about["inputs"]} for side in ("base", "source"))
    factual, labels, eligible = (arrays[name] for name in ("factual", "labels", "eligible"))
    return PairBank(base, source, factual, labels, eligible, tuple(about["variables"]), about["role"])


def _network_parts(network: Network) -> tuple[Arrays, dict[str, Any]]:
    check_network(network)
    leaves = jax.tree_util.tree_leaves_with_path(network.params)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays, {"model": described(network.model), "digest": params_digest(network.params)}


def _whole_network(arrays: Arrays, about: Mapping[str, Any]) -> Network:
    model = model_of(about["model"])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    if set(names) != set(arrays):
        wrong = sorted(set(arrays) ^ set(names))[:4]
        raise ValueError(f"got arrays {wrong} too many or too few, expected those of {model}")
    network = Network(model, jax.tree.unflatten(structure, [arrays[name] for name in names]))
    check_network(network)
    return network


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "numpy": np.__version__, "abstraction": abstraction.__version__}


class _Kind(NamedTuple):
    """How values of one type are taken apart and put together."""

    type: type
    parts: Callable[[Any], tuple[Arrays, dict[str, Any]]]
    whole: Callable[[Arrays, Mapping[str, Any]], Any]


_VERSION = "1"
_BOUND = ("handle", "choice")
_KINDS: dict[str, _Kind] = {
    "handle": _Kind(Handle, _handle_parts, _whole_handle),
    "choice": _Kind(Choice, _choice_parts, _whole_choice),
    "plans": _Kind(Plans, _plans_parts, _whole_plans),
    "bank": _Kind(PairBank, _bank_parts, _whole_bank),
    "network": _Kind(Network, _network_parts, _whole_network),
}
