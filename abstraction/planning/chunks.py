"""A chunk that pays and fits.

What pays is known to the driver: what stays in the cache of a CPU, or gives an accelerator enough to do. What fits is
known to the compiler. The program of the wanted chunk is compiled, which it would be anyway, and its memory read; if it
is too much, others are, where a line through what is known says they just fit:

    total(c)  =  fixed + c one,       c  <-  floor((room - fixed) / one)

until one fits and leaves less than half of the room. A chunk that is small by any guess is not looked at, so that small
runs compile nothing else and nothing earlier: all of its elements together, `_MARGIN` times over, are a part of the
room.
"""

from collections.abc import Callable, Sequence

from abstraction.checks import whole
from abstraction.planning.memory import device_memory
from abstraction.planning.programs import Footprint, Program, footprint

_SHARE = 0.75
"""Part of the memory that one program may take; the rest is for other recordings and the allocator."""
_MARGIN = 8
_SMALL = 1 / 8
"""Part of the room below which a guess with that margin is trusted."""
_TRIES = 8

At = Callable[[int], Program]
"""Makes the program for some size of chunk."""


def room_in(memory: int) -> int:
    """Return the bytes that one program may take of a memory."""
    return int(_SHARE * memory)


def fitting_chunk(
    at: At,
    wanted: int,
    guess: int,
    *,
    allowed: Callable[[int], int] = int,
    memory: int | None = None,
    look: Callable[[Program], Footprint | None] | None = None,
) -> int:
    """Return a chunk, `wanted` at most, whose program fits the device, and more than half of what does.

    The same program and memory give the same chunk.

    Args:
      at: makes the program for some size of chunk.
      wanted: the chunk that pays.
      guess: bytes that one element of the chunk may hold.
      allowed: the largest size that is possible and no larger than a bound; 1 is always.
      memory: bytes of the device; None to ask it.
      look: compiles a program and reads what it holds; None for `footprint`.

    Raises:
      ValueError: one element alone does not fit.
    """
    whole("wanted chunk", wanted)
    memory = device_memory() if memory is None else memory
    if memory is None or wanted * guess * _MARGIN <= _SMALL * room_in(memory):
        return wanted
    room, best, least = room_in(memory), 0, wanted + 1  # the largest that is known to fit, the smallest that is not to
    size, known = allowed(max(1, min(wanted, -(-room // max(guess, 1))))), []
    for _ in range(_TRIES):
        found = (look or footprint)(at(size))
        known.append((size, found))
        if found is None or found.total > room:
            least = size
        else:
            best = size
            if size == wanted or 2 * found.total > room:
                break
        size = allowed(max(1, min(_just_fitting(known, room), least - 1)))
        if size <= best or size >= least:
            break
    return best or _alone(known, memory)


def _just_fitting(known: Sequence[tuple[int, Footprint | None]], room: int) -> int:
    """Return the size that should just fit, by the last two that were looked at."""
    size, found = known[-1]
    if found is None:
        return size // 2
    fixed, one = found.arguments, (found.total - found.arguments) / size
    if len(known) > 1 and (before := known[-2][1]) is not None:
        slope = (before.total - found.total) / (known[-2][0] - size)
        fixed, one = (found.total - size * slope, slope) if slope > 0 else (fixed, one)
    fits = int((room - fixed) / max(one, 1))
    return max(fits, size + 1) if found.total <= room else min(fits, size - 1)


def _alone(known: Sequence[tuple[int, Footprint | None]], memory: int) -> int:
    """Return 1, where nothing larger fits.

    Raises:
      ValueError: not even that.
    """
    size, found = known[-1]
    if size == 1 and found is not None and found.total > memory:
        raise ValueError(
            f"got a program that holds {found.total / 1e9:.3g} GB for one at a time ({found.arguments / 1e9:.3g} of "
            f"arguments, {found.outputs / 1e9:.3g} of outputs, {found.temporary / 1e9:.3g} in between), expected it to "
            f"fit a device of {memory / 1e9:.3g} GB: take fewer pairs or outputs"
        )
    return 1
