"""Binary addition: does a network that adds carry?

    C_0 = 0,   S_t = a_t xor b_t xor C_t,   C_{t+1} = majority(a_t, b_t, C_t),   least significant bit first

The variables are the internal carries C_1 .. C_{n-1}; the output is the sum, C_n its last bit. The network reads the
bits (a_t, b_t) one step at a time (PLOT, binary addition benchmark).

Pairs are structured: every base meets the same 26 kinds of source (for n = 4), the *source families*: its eight
single-bit flips, and for each carry a few inputs that flip this carry and as little else as possible.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstraction.causal import CausalModel, PairBank, label_pairs
from abstraction.causal.pairs import Role
from abstraction.causal.scm import Mechanism
from abstraction.checks import is_whole, whole
from abstraction.tasks.ranges import check_setting
from abstraction.typing import Setting

EXHAUSTIVE_BITS = 6
"""Widths up to this are enumerated: 4^6 inputs."""
MOST_BITS = 30
"""Sums of wider numbers do not fit 32 bits."""


class Banks(NamedTuple):
    """The pair banks of one run.

    Attributes:
      fit: pairs for signatures and training.
      calibration: pairs for choosing.
      test: pairs for the one test.
      families: names of the source families; pair t belongs to family t modulo their number.
    """

    fit: PairBank
    calibration: PairBank
    test: PairBank
    families: tuple[str, ...]


@cache
def adder(bits: int = 4) -> CausalModel:
    """Build the ripple-carry adder: inputs `a`, `b` (integers), carries `c1..cn`, sum bits `s0..`, output `total`.

    Raises:
      ValueError: fewer than one bit, or more than 30.
    """
    if not is_whole(bits) or not 1 <= bits <= MOST_BITS:
        raise ValueError(f"got an adder of {bits} bits, expected between 1 and {MOST_BITS}")
    mechanisms = []
    for t in range(bits):
        carry = (f"c{t}",) if t else ()
        mechanisms.append(Mechanism(f"s{t}", ("a", "b", *carry), _sum_bit(t)))
        mechanisms.append(Mechanism(f"c{t + 1}", ("a", "b", *carry), _carry(t)))
    parts = (*(f"s{t}" for t in range(bits)), f"c{bits}")
    mechanisms.append(Mechanism("total", parts, lambda *parts: sum(part << t for t, part in enumerate(parts))))
    return CausalModel(("a", "b"), tuple(mechanisms), "total")


def carries(bits: int = 4) -> tuple[str, ...]:
    """Name the internal carries, the variables to find.

    Raises:
      ValueError: a number of bits out of its range.
    """
    whole("bits", bits, 1, MOST_BITS)
    return tuple(f"c{t}" for t in range(1, bits))


def known_with(variable: str) -> tuple[str, ...]:
    """Name what is known when a carry has been computed: the sum bits before it, and the carries before it.

    They move with the carry without being it: covariates of a regression on it.

    Raises:
      ValueError: not a carry.
    """
    if not (variable[:1] == "c" and variable[1:].isdigit() and int(variable[1:]) > 0):
        raise ValueError(f"got variable {variable!r}, expected a carry: c1, c2, ...")
    index = int(variable[1:])
    return (*(f"s{t}" for t in range(index)), *(f"c{t}" for t in range(1, index)))


def encode(setting: Setting, bits: int = 4) -> Float[np.ndarray, "N bits 2"]:
    """Spell both numbers bit by bit, least significant first: the network's input.

    Raises:
      ValueError: a number that is not whole or has more bits.
    """
    whole("bits", bits, 1, MOST_BITS)
    check_setting(setting, ("a", "b"), 2**bits)
    numbers = np.stack([np.asarray(setting["a"]), np.asarray(setting["b"])], axis=-1)
    return (numbers[:, None, :] >> np.arange(bits)[:, None] & 1).astype(np.float32)


def every_input(bits: int = 4) -> dict[str, np.ndarray]:
    """Enumerate all pairs of numbers, `a` slowest.

    Raises:
      ValueError: too many of them, or none.
    """
    whole("bits", bits, 1)
    if bits > EXHAUSTIVE_BITS:
        raise ValueError(f"got {bits} bits, expected at most {EXHAUSTIVE_BITS}: more are sampled with random_inputs")
    a, b = np.divmod(np.arange(4**bits, dtype=np.int32), 2**bits)
    return {"a": a, "b": b}


def random_inputs(seed: int, count: int, bits: int) -> dict[str, np.ndarray]:
    """Draw uniform pairs of numbers.

    Raises:
      ValueError: a number out of its range.
    """
    whole("seed", seed, 0)
    whole("count", count, 1)
    whole("bits", bits, 1, MOST_BITS)
    a, b = np.random.default_rng(seed).integers(0, 2**bits, (2, count), dtype=np.int32)
    return {"a": a, "b": b}


def base_order(seed: int, pool: Setting, bits: int = 4) -> Int[np.ndarray, " B"]:
    """Order inputs so that every stretch holds all lengths of carry chain, as the authors do.

    Inputs are put in buckets by their longest run of carries, each bucket is shuffled by `random.Random(seed)`, and
    the buckets are emptied from their ends in turn.

    Returns:
      Indices into the pool.

    Raises:
      ValueError: a number of the pool out of its range.
    """
    check_setting(pool, ("a", "b"), 2**bits)
    runs = _longest_run(_values(pool, bits)[:, :bits])
    generator = random.Random(seed)
    buckets = [np.flatnonzero(runs == length).tolist() for length in range(bits + 1)]
    for bucket in buckets:
        generator.shuffle(bucket)
    order = []
    while any(buckets):
        order += [bucket.pop() for bucket in buckets if bucket]
    return np.array(order)


def source_families(bits: int = 4) -> tuple[str, ...]:
    """Name the families: `flip-a0`, `flip-b0`, ..., then `target-c1-0`, ... in the order pairs have them.

    Raises:
      ValueError: a number of bits out of its range.
    """
    whole("bits", bits, 1, MOST_BITS)
    flips = [f"flip-{name}{t}" for t in range(bits) for name in "ab"]
    return (*flips, *(f"target-c{carry}-{rank}" for carry, count in _targets(bits) for rank in range(count)))


def structured_sources(base: Setting, pool: Setting, bits: int = 4) -> dict[str, np.ndarray]:
    """Choose the sources of every base, one per family: values `[B, families]`.

    A target of C_i is an input of the pool whose C_i differs from the base's; the closest come first: by mismatches
    among S_0 .. S_{i-1}, then by other differing carries and sum bits, by differing input bits, by a, by b.

    Raises:
      ValueError: the pool has too few inputs that flip some carry of a base, or a number is out of range.
    """
    for setting in (base, pool):
        check_setting(setting, ("a", "b"), 2**bits)
    own, other = _values(base, bits), _values(pool, bits)
    differs = own[:, None, :] != other[None, :, :]
    spelled = [encode(setting, bits).reshape(-1, 2 * bits) for setting in (base, pool)]
    distance = (spelled[0][:, None, :] != spelled[1][None, :, :]).sum(axis=-1)
    columns = {name: [] for name in ("a", "b")}
    for t in range(bits):
        for flipped in ("a", "b"):
            for name in columns:
                columns[name].append(np.asarray(base[name]) ^ ((1 << t) if name == flipped else 0))
    for carry, count in _targets(bits):
        chosen = _closest(differs, distance, pool, carry, count, bits)
        for name in columns:
            columns[name] += list(np.asarray(pool[name])[chosen].T)
    return {name: np.stack(values, axis=1) for name, values in columns.items()}


def structured_banks(
    seed: int, *, bits: int = 4, fit: int = 128, calibration: int = 64, test: int = 64, pool: Setting | None = None
) -> Banks:
    """Draw the authors' banks: disjoint bases per role, each with one source of every family.

    Sources come from the whole pool in every role, as in the paper, so a test source may be a fit base.

    Args:
      seed: orders the bases.
      bits: width of the numbers.
      fit: bases of the fit bank; likewise `calibration` and `test`.
      pool: inputs to take bases and sources from; by default all of them, and above 6 bits 4096 random ones.

    Raises:
      ValueError: fewer inputs than bases, none to fit, or a number out of its range.
    """
    whole("bits", bits, 2, MOST_BITS)
    if pool is None:
        pool = every_input(bits) if bits <= EXHAUSTIVE_BITS else random_inputs(seed, 4096, bits)
    sizes = {"fit": fit, "calibration": calibration, "test": test}
    for name, size in sizes.items():
        whole(name, size, 1 if name == "fit" else 0)
    if sum(sizes.values()) > len(pool["a"]):
        raise ValueError(f"got {sizes} bases, expected at most the {len(pool['a'])} inputs of the pool together")
    order = base_order(seed, pool, bits)

    def bank(role: Role, first: int, count: int) -> PairBank:
        base = {name: np.asarray(pool[name])[order[first : first + count]] for name in ("a", "b")}
        return _bank(base, structured_sources(base, pool, bits), bits, role)

    return Banks(
        bank("fit", 0, fit),
        bank("calibration", fit, calibration),
        bank("test", fit + calibration, test),
        source_families(bits),
    )


def _bank(base: Setting, sources: Setting, bits: int, role: Role) -> PairBank:
    families = np.asarray(sources["a"]).shape[1]
    repeated = {name: np.repeat(values, families) for name, values in base.items()}
    flat = {name: np.asarray(values).reshape(-1) for name, values in sources.items()}
    return label_pairs(adder(bits), repeated, flat, variables=carries(bits), role=role)


def _targets(bits: int) -> Sequence[tuple[int, int]]:
    """List each carry and how many sources aim at it: 3, 5, 7 and 3 for four bits."""
    return [(carry, 2 * carry + 1 if carry < bits else 3) for carry in range(1, bits + 1)]


def _closest(
    differs: np.ndarray, distance: np.ndarray, pool: Setting, carry: int, count: int, bits: int
) -> Int[np.ndarray, "B count"]:
    """Return the pool indices of the nearest inputs that flip one carry of each base."""
    flips = differs[:, :, carry - 1]
    if (flips.sum(axis=1) < count).any():
        raise ValueError(
            f"got a pool with {flips.sum(axis=1).min()} inputs that flip C{carry} of some base, expected {count}"
        )
    earlier = differs[:, :, bits : bits + carry].sum(axis=-1)
    others = differs.sum(axis=-1) - flips
    spread = lambda values: np.broadcast_to(np.asarray(values), flips.shape)
    order = np.lexsort((spread(pool["b"]), spread(pool["a"]), distance, others, earlier, ~flips), axis=-1)
    return order[:, :count]


def _values(setting: Setting, bits: int) -> Int[np.ndarray, "N values"]:
    """Return C_1 .. C_n, S_0 .. S_{n-1} of every input."""
    run = adder(bits).run(setting)
    names = (*(f"c{t + 1}" for t in range(bits)), *(f"s{t}" for t in range(bits)))
    return np.stack([np.asarray(run[name]) for name in names], axis=-1)


def _longest_run(flags: Int[np.ndarray, "N bits"]) -> Int[np.ndarray, " N"]:
    longest = current = np.zeros(len(flags), int)
    for column in flags.T:
        current = (current + 1) * column
        longest = np.maximum(longest, current)
    return longest


def _sum_bit(t: int) -> Callable:
    return lambda a, b, carry=0: ((a >> t) ^ (b >> t) ^ carry) & 1


def _carry(t: int) -> Callable:
    def carry_out(a: Any, b: Any, carry: Any = 0) -> Any:
        x, y = a >> t & 1, b >> t & 1
        return (x & y) | (carry & (x ^ y))

    return carry_out
