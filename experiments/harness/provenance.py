"""With what a run was computed: code, versions and device, and what of it changed between two legs."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "abstraction-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "ott-jax",
    "numpy",
    "scipy",
    "scikit-learn",
    "orbax-checkpoint",
)


def provenance() -> dict[str, Any]:
    """Describe code, versions and device."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": {"revision": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": {
            "backend": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
        },
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which versions, code and device two legs of a run differ: `jax 0.8.0 -> 0.8.1`."""
    told = []
    for title, field in (("", "versions"), ("git ", "git"), ("", "device")):
        old, new = before.get(field, {}), now.get(field, {})
        for name in [*new, *(name for name in old if name not in new)]:
            was, is_ = old.get(name, "unknown"), new.get(name, "unknown")
            if was != is_:
                told.append(f"{title}{name} {_shown(was)} -> {_shown(is_)}")
    return told


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 40 and " " not in text else text or "unknown"


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
