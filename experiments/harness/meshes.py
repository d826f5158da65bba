"""`--mesh pairs=4,candidates=2`: a run whose work several devices share (`abstraction.sharding`)."""

from jax.sharding import Mesh

from abstraction.models import Network, on_mesh
from abstraction.sharding import AXES, device_mesh, mesh_of
from experiments.harness.processes import as_first
from experiments.harness.valid import require


def parsed_mesh(text: str | None) -> Mesh | None:
    """Make the mesh that a flag asks for.

    Raises:
      ValueError: no such mesh, or fewer devices than it has.
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    known = all(name in AXES and joined and size.isdecimal() for name, joined, size in pairs)
    expected = f"sizes of some of {', '.join(AXES)}, each once, such as pairs=4,candidates=2"
    require("--mesh", text, known and len({name for name, _, _ in pairs}) == len(pairs), expected)
    sizes = {name: int(size) for name, _, size in pairs}
    return device_mesh(*(sizes.get(axis, 1) for axis in AXES))


def placed(network: Network, mesh: str | None) -> Network:
    """Put a network where a flag says: what runs it shares its work out there."""
    devices = parsed_mesh(mesh)
    if devices is None:
        return network
    params = network.params if mesh_of(network.params) == devices else as_first(network.params)
    return on_mesh(Network(network.model, params), devices)
