"""How a command ends when it cannot go on: one line on stderr that says why and how to continue, and an exit status.

    2    a value that cannot work, a damaged record          130  Ctrl-C
    1    the outside world: disk, hub, missing extra         143  SIGTERM before a run, or a second one
         a training that diverged                              0  SIGTERM, after the step that runs

A run that SIGTERM reaches, as a scheduler sends it ahead of the end, finishes its step: an epoch of a search, a chunk
of a sweep, a method. What was measured by then is in its folder. A fault of this program keeps its traceback. Nothing
heavy is imported here, so that Ctrl-C while JAX is being imported ends in one line too.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

WRONG, FAILED, INTERRUPTED, TERMINATED, PIPE = 2, 1, 130, 143, 141
COMMAND = "python -m experiments"
_OUTSIDE = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "datasets", "aiohttp")
"""Packages whose errors say that a server could not be reached or would not answer."""
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""How XLA says that a device's memory is full."""


class Terminated(BaseException):
    """SIGTERM arrived."""


class Stopped(BaseException):
    """SIGTERM arrived, and the step that ran is finished."""


class Continuation:
    """Whether to go on, and what to type to go on later; a run says where it writes once it knows.

    Attributes:
      together: tells of several processes that share a run whether SIGTERM has arrived at one of them.
    """

    def __init__(self, arguments: list[str]):
        self._arguments = arguments
        self._out: Path | None = None
        self._asked = False
        self.together: Callable[[bool], bool] = bool

    def writes_to(self, out: Path) -> None:
        """Say which folder the run is in; from here on SIGTERM waits for the end of a step."""
        self._out = out

    def step(self) -> None:
        """End here, between two steps, if SIGTERM has arrived.

        Raises:
          Stopped: it has.
        """
        if self.together(self._asked):
            raise Stopped

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Take note of SIGTERM.

        Raises:
          Terminated: there is no run that could finish its step, or it is the second.
        """
        if self._out is None or self._asked:
            raise Terminated
        self._asked = True

    def __str__(self) -> str:
        if self._out is None or not (self._out / "config.json").exists():
            return ""
        more = [] if _given(self._arguments, "--out") else ["--out", str(self._out)]
        more += [] if _given(self._arguments, "--resume") else ["--resume"]
        command = f"{COMMAND} {shlex.join([*self._arguments, *more])}"
        return f"; what was finished is in {self._out}; continue with: {command}"


@contextmanager
def in_one_line(arguments: list[str]) -> Iterator[Continuation]:
    """Turn what stops a command into one line on stderr and an exit status."""
    continuation = Continuation(arguments)
    with _terminations(continuation):
        try:
            yield continuation
        except ValueError as error:
            _end(f"error: {_one_line(error)}", WRONG)
        except KeyboardInterrupt:
            _end(f"interrupted{continuation}", INTERRUPTED)
        except Stopped:
            _end(f"stopped{continuation}", 0)
        except Terminated:
            _end(f"terminated{continuation}", TERMINATED)
        except BrokenPipeError:
            # Whoever read the output has gone; flushing it at exit would complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(PIPE) from None
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("abstraction", "experiments"):
                raise
            _end(f"error: {_missing(error)}{continuation}", FAILED)
        except (OSError, FloatingPointError, MemoryError, ImportError) as error:
            _end(f"error: {_one_line(error)}{continuation}", FAILED)
        except Exception as error:
            outside = type(error).__module__.split(".")[0] in _OUTSIDE
            if not outside and not str(error).startswith(_OUT_OF_MEMORY):
                raise
            _end(f"error: {_one_line(error)}{continuation}", FAILED)


@contextmanager
def _terminations(continuation: Continuation) -> Iterator[None]:
    """Let SIGTERM unwind the program as Ctrl-C does, so that nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable | int | None = signal.signal(signal.SIGTERM, continuation.terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(status) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _missing(error: ModuleNotFoundError) -> str:
    if error.name is None:
        return _one_line(error)
    return f"{error.name} is not installed, expected the extra: pip install 'abstraction-jax[experiments]'"


def _given(arguments: list[str], flag: str) -> bool:
    return any(argument.split("=")[0] == flag for argument in arguments)
