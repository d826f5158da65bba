"""The fields of a `config.json` that families share, each read once and checked: what is not understood is refused."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from abstraction.models.decoder_config import ActivationKind, Precision, RopeScaling, is_count, is_number

ACTIVATIONS: Mapping[str, ActivationKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
PRECISIONS: Mapping[str | None, Precision] = {None: "float32", "float32": "float32", "bfloat16": "bfloat16"}
LAYERS = ("full_attention", "sliding_attention")
Take = Callable[..., Any]
"""Remove a field and return it, or a default where there is one."""


class Rope(NamedTuple):
    """Rotations, as a family's fields say.

    Attributes:
      theta: their base.
      factor: they are this much slower.
      scaling: Llama 3.1's stretch, or None.
      share: of the features of a head that are rotated.
    """

    theta: float
    factor: float = 1.0
    scaling: RopeScaling | None = None
    share: float = 1.0


def rotary(take: Take, turns: Rope | None = None, *, size: int | None = None) -> dict[str, Any]:
    """Return what families with rotations and RMS norms spell alike; `size` of heads where nothing is said."""
    width, heads = count(take, "hidden_size"), count(take, "num_attention_heads")
    take("max_position_embeddings", None)
    turns = rope(take) if turns is None else turns
    width_of_head = count(take, "head_dim", None) or size or shared(width, heads)
    return {
        "vocabulary": count(take, "vocab_size"),
        "width": width,
        "depth": count(take, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": count(take, "num_key_value_heads", None) or heads,
        "head_size": width_of_head,
        "hidden": count(take, "intermediate_size"),
        "rope_theta": turns.theta,
        "rope_factor": turns.factor,
        "rope_scaling": turns.scaling,
        "rotated": rotated(turns, width_of_head),
        "norm_epsilon": number(take, "rms_norm_eps", 1e-6),
        "dtype": precision(take),
    }


def rope(take: Take, *, theta: float = 10_000.0, share: float | None = None) -> Rope:
    """Read the rotations.

    Args:
      take: takes a field.
      theta: base where nothing is said.
      share: of the features that are rotated where nothing is said, or None for a family that rotates all.
    """
    given, old, new = number(take, "rope_theta", None), take("rope_scaling", None), take("rope_parameters", None)
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"got {name} {value!r}, expected fields by name, or null")
    if old and new:
        raise ValueError(f"got both rope_scaling {old} and rope_parameters {new}, expected one of them")
    left = dict(new or old or {})
    outer = None if share is None else number(take, "partial_rotary_factor", None)
    inner = number(left.pop, "rope_theta", None)
    if None not in (given, inner) and given != inner:
        raise ValueError(f"got rope_theta {given} and {inner} inside rope_parameters, expected them to agree")
    if share is None:
        only(left.pop, "partial_rotary_factor", 1.0)
    turned = next(value for value in (number(left.pop, "partial_rotary_factor", None), outer, share, 1.0) if value)
    read = rope_of_kind(left)
    base = next(value for value in (inner, given, theta) if value)  # 0 has been refused
    return read._replace(theta=float(base), share=float(turned))


def rope_of_kind(left: dict[str, Any]) -> Rope:
    """Read how rotations are slowed, from what is left once their base and share are known."""
    kinds = {str(left.pop(name)) for name in ("type", "rope_type") if name in left} or {"default"}
    read = Rope(0.0)
    if kinds == {"llama3"}:
        factor, low, high = (number(left.pop, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        context = count(left.pop, "original_max_position_embeddings")
        read = read._replace(scaling=RopeScaling(factor, low, high, context))
    elif kinds == {"linear"}:
        read = read._replace(factor=float(number(left.pop, "factor")))
    elif kinds != {"default"}:
        raise ValueError(f"got rope scaling of type {sorted(kinds)}, expected 'default', 'linear' or 'llama3'")
    if left:
        raise ValueError(
            f"got rope parameters {left}, whose effect is not known, expected those of 'default', 'linear' or 'llama3'"
        )
    return read


def rotated(turns: Rope, size: int) -> int | None:
    """Return how many features of a head of some size are rotated, or None for all."""
    if not turns.share <= 1:
        raise ValueError(f"got partial_rotary_factor {turns.share}, expected a share of at most 1")
    return None if turns.share == 1 else int(size * turns.share)


def sliding(take: Take, depth: int, *, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Read which layers are windowed."""
    kinds = take("layer_types", None)
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != depth or any(kind not in LAYERS for kind in kinds):
        raise ValueError(f"got layer_types {kinds!r}, expected one of {LAYERS} for each of {depth} layers")
    return tuple(kind == "sliding_attention" for kind in kinds)


def precision(take: Take) -> Precision:
    """Read the dtype."""
    new, old = take("dtype", None), take("torch_dtype", None)
    return one_of("dtype", new or old, PRECISIONS)


def shared(width: int, heads: int) -> int:
    """Return the width of each head."""
    if width % heads:
        raise ValueError(f"got width {width} for {heads} heads, expected a multiple")
    return width // heads


def count(take: Take, name: str, *default: Any, null: bool = False) -> Any:
    """Take a whole number of at least 1, or a default of None, or null."""
    value = take(name, *default)
    if not is_count(value) and not (value is None and (null or default == (None,))):
        raise ValueError(f"got {name} {value!r}, expected a whole number of at least 1")
    return value


def number(take: Take, name: str, *default: Any, null: bool = False) -> Any:
    """Take a finite number above 0, or a default of None, or null."""
    value = take(name, *default)
    if value is not None and is_number(value) and value > 0:
        return value
    if value is None and (null or default == (None,)):
        return None
    raise ValueError(f"got {name} {value!r}, expected a finite number above 0")


def flag(take: Take, name: str, default: bool) -> bool:
    """Take true or false."""
    value = take(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"got {name} {value!r}, expected true or false")
    return value


def one_of(name: str, value: Any, known: Mapping) -> Any:
    """Translate a word."""
    if not isinstance(value, str | None) or value not in known:
        raise ValueError(f"got {name} {value!r}, expected one of {list(known)}")
    return known[value]


def only(take: Take, name: str, *allowed: Any) -> None:
    """Refuse any value but some."""
    value = take(name, allowed[0])
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
        raise ValueError(f"got {name} {value!r}, expected {allowed[0]!r}")
