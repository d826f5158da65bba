"""How much goes at once: chunks that fit the device, by the compiler's own figures.

What a chunk needs is known before it runs: XLA plans the memory of a program when it compiles it. So drivers ask for
the chunk that pays, and get the largest not above it whose program fits.
"""

from abstraction.planning.chunks import At as At
from abstraction.planning.chunks import fitting_chunk as fitting_chunk
from abstraction.planning.chunks import room_in as room_in
from abstraction.planning.memory import MEMORY as MEMORY
from abstraction.planning.memory import device_memory as device_memory
from abstraction.planning.programs import Footprint as Footprint
from abstraction.planning.programs import Program as Program
from abstraction.planning.programs import footprint as footprint
from abstraction.planning.programs import footprint_of as footprint_of
from abstraction.planning.targets import TARGETS as TARGETS
from abstraction.planning.targets import Ahead as Ahead
from abstraction.planning.targets import Target as Target
from abstraction.planning.targets import compile_ahead as compile_ahead
from abstraction.planning.targets import placed_on as placed_on
from abstraction.planning.targets import target_devices as target_devices
