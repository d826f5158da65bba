"""Counting what is compiled."""

from contextlib import contextmanager

import jax


@contextmanager
def compilations():
    """Count programs handed to the compiler."""
    events = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
