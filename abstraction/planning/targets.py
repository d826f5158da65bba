"""Devices that are not there: what they hold and how fast they are, and compiling for them ahead of time.

XLA compiles for a device without one: for a TPU with `libtpu` installed, for an NVIDIA GPU with JAX's CUDA plugin. A
program that compiles and whose memory fits is a fact one can have before launching; its time is not, and a roofline is
a bound:

    seconds  >=  max(operations / flops, bytes / bandwidth)
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from abstraction.checks import one_of
from abstraction.planning.programs import Footprint, Program, footprint_of

_COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      name: for people.
      platform: what JAX calls its compiler.
      memory: bytes of one device.
      flops: operations a second in bfloat16, dense, by its vendor.
      bandwidth: bytes a second of its memory, by its vendor.
      layouts: how JAX names so many devices, by their number, or more of which the first are compiled for.
      package: what has the compiler.
    """

    name: str
    platform: str
    memory: int
    flops: float
    bandwidth: float
    layouts: tuple[tuple[int, str], ...]
    package: str


_CUDA = 'pip install "jax[cuda13]"', ((1, "1x1x1"), (8, "1x1x8"))
_TPU = "pip install libtpu"
TARGETS = {
    "h100": Target("H100", "cuda", 84_942_979_072, 989e12, 3.35e12, _CUDA[1], _CUDA[0]),
    "v5e": Target("TPU v5e", "tpu", 16 * 2**30, 197e12, 0.819e12, ((1, "v5e:2x2"), (8, "v5e:2x4")), _TPU),
    "v5p": Target("TPU v5p", "tpu", 95 * 2**30, 459e12, 2.765e12, ((1, "v5p:2x2x1"), (8, "v5p:2x2x2")), _TPU),
}
"""Peak rates are the vendors': NVIDIA's H100 SXM5 datasheet without sparsity, Google's pages of TPU v5e and v5p."""


def target_devices(name: str, count: int = 1) -> list[Any]:
    """Return so many devices to compile for.

    Raises:
      ValueError: no such target, no layout of so many, or its compiler is not installed.
    """
    one_of("target", name, sorted(TARGETS))
    target = TARGETS[name]
    layouts = dict(target.layouts)
    if count not in layouts:
        raise ValueError(f"got {count} devices of {target.name}, expected one of {sorted(layouts)}")
    # Read when plugins are: there is no cloud to ask which machine this is, and no driver to ask for its version.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.devices("cpu")  # before a plugin without its device is asked to be the default
    options: dict[str, Any] = {"topology_name": layouts[count]}
    if target.platform == "cuda":
        text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="ascii")
        options = {"topology_name": "", "topology": layouts[count], "target_config": text}
    try:
        found = topologies.get_topology_desc(platform=target.platform, **options).devices
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise ValueError(
            f"got target {name!r} and no compiler for it ({str(error).splitlines()[0]}), expected one: "
            f"`{target.package}`, in an environment of its own"
        ) from error
    return list(found[:count])


def placed_on(tree: Any, place: Any) -> Any:
    """Turn a tree of arrays, or of shapes, into shapes with a sharding.

    Args:
      tree: arrays or shapes.
      place: the sharding of all leaves, or a function of a leaf's path and shape; on a mesh, leaves that say where on
        it they are stay there, and all devices have the others.
    """

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        own = getattr(leaf, "sharding", None)
        if not isinstance(place, Mesh):  # which can be called, as a decorator
            where = place(path, aval) if callable(place) else place
        else:
            where = (
                own if isinstance(own, NamedSharding) and own.mesh == place else NamedSharding(place, PartitionSpec())
            )
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(one, tree)


@dataclass(frozen=True)
class Ahead:
    """A program compiled ahead of time.

    Attributes:
      footprint: bytes of one device; None where the compiler finds it too large.
      collectives: how many of each kind its text has.
      text: what the compiler says where it refuses.
    """

    footprint: Footprint | None
    collectives: dict[str, int]
    text: str = ""

    def fits(self, memory: int) -> bool:
        """Whether one device of so much memory holds it."""
        return self.footprint is not None and self.footprint.total <= memory


def compile_ahead(program: Program, place: Any) -> Ahead:
    """Compile a program for devices that are not there.

    Args:
      program: with arrays or shapes.
      place: on those devices, see `placed_on`.
    """
    lowered = program.function.lower(*placed_on(program.arguments, place), **program.options)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return Ahead(None, {}, str(error).splitlines()[0])
    return Ahead(footprint_of(compiled), dict(Counter(_COLLECTIVES.findall(compiled.as_text() or ""))))
