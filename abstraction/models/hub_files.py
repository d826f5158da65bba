"""The files of a network of transformers: found in a folder or downloaded, and checked before their weights are read.

A folder's weights are `model.safetensors`, or the shards of `model.safetensors.index.json`. Where both are there they
may differ, and programs differ in which they read, so that is refused. No file outside the folder is read, whatever an
index or a link says; only the hub's own cache keeps its files beside the folder, in `blobs`.
"""

import json
import re
from pathlib import Path
from typing import Any

PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json"]
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_ADVICE = {
    "GatedRepoError": "the repository is gated: accept its terms on its page and log in (hf auth login)",
    "RepositoryNotFoundError": "no such repository, or it is private: check the name, or log in (hf auth login)",
    "RevisionNotFoundError": "the repository has no such revision: check it on the repository's page",
    "LocalEntryNotFoundError": "it is not in the cache and the hub cannot be reached: go online, or give a folder",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the download: unset it, or give a folder",
}


def network_folder(source: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """Return a folder, downloaded where the source is a name on the hub.

    Raises:
      ValueError: the source is neither, or a revision of a folder.
      OSError: the hub cannot be reached or refuses; what to do about it.
      ImportError: a download without `huggingface_hub`.
    """
    if not isinstance(source, str | Path) or source == "":
        raise ValueError(f"got source {source!r}, expected a folder or a name on the hub")
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"got revision {revision!r} for the folder {source}, expected None")
        return Path(source)
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise ValueError(f"got source {str(source)!r}, which is no folder, expected one or a name on the hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"{source!r} is no folder; to download: pip install 'abstraction-jax[hub]'") from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise OSError(f"cannot download {source!r} (revision {revision}) from the hub: {advice(error)}") from error


def advice(error: BaseException) -> str:
    """Say what to do about an error of `huggingface_hub`, in one line."""
    names = [kind.__name__ for one in (error.__cause__, error) if one is not None for kind in type(one).__mro__]
    reason = next((_ADVICE[name] for name in names if name in _ADVICE), None)
    lines = str(error).strip().splitlines()
    return reason or f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}; try again, or give a folder"


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of a JSON file.

    Raises:
      ValueError: it is no JSON, or no object.
      OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"got {path}, expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"got {path} with a {type(content).__name__}, expected a JSON object of fields by name")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights.

    Raises:
      ValueError: there are none or two sets, a shard is missing or outside the folder, or the index is no index.
    """
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
        if names != [WEIGHTS] and (folder / WEIGHTS).exists():
            raise ValueError(
                f"got {folder} with both {WEIGHTS} and {INDEX}, expected one set of weights: transformers reads the "
                f"former; remove the one that is not meant"
            )
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"got {folder} without {absent}, expected {WEIGHTS} or all shards of its index")
    homes = [folder.resolve()]
    if homes[0].parent.name == "snapshots":  # the hub's cache: its snapshots are links to what several of them share
        homes.append(homes[0].parent.parent / "blobs")
    for name in names:
        target = (folder / name).resolve()
        if target.parent not in homes:
            raise ValueError(f"got {folder / name}, a link to {target}, expected a file of that folder itself")
    return [folder / name for name in names]


def _shards(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"got {index} with weight_map {shards!r}, expected the file of each tensor by name")
    names = list(shards.values())
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"got {index} with a shard {name!r}, expected the name of a .safetensors file beside it")
    return sorted(set(names))
