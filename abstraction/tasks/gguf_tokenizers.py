"""The tokenizer of a GGUF file: byte-level BPE, built from the file's metadata by the package `tokenizers`.

A file names how a text is cut before its bytes are merged (`tokenizer.ggml.pre`) and does not say it; the cuts below
are those of the tokenizers that have these names.
"""

from collections.abc import Callable, Mapping
from typing import Any

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = (3, 4)
"""Types of tokens that are found in a text before it is cut: control and user-defined ones."""


def _cuts(parts: Any) -> Mapping[str, Callable[[], Any]]:
    bytes_of_words = lambda: parts.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": bytes_of_words,
        "smollm": lambda: parts.Sequence([parts.Digits(individual_digits=True), bytes_of_words()]),
        "qwen2": lambda: parts.Sequence(
            [_split(parts, _QWEN2), parts.ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    }


def _split(parts: Any, expression: str) -> Any:
    from tokenizers import Regex

    return parts.Split(Regex(expression), "isolated")


def tokenizer_of(metadata: Mapping[str, Any]) -> Any:
    """Build the tokenizer that a file's metadata describes, as a `tokenizers.Tokenizer`.

    Raises:
      ValueError: a kind that is not built here, or fields that are missing.
      ImportError: without `tokenizers`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    own = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    kind, cut, known = own.get("model"), own.get("pre"), _cuts(pre_tokenizers)
    if kind != "gpt2" or not isinstance(cut, str) or cut not in known:
        raise ValueError(
            f"got a tokenizer {kind!r} cut as {cut!r}, expected 'gpt2', byte-level BPE, cut as one of {sorted(known)}; "
            "give a folder with a tokenizer.json instead"
        )
    tokens, merges = own.get("tokens"), own.get("merges")
    if not tokens or merges is None:
        raise ValueError("got a tokenizer without tokens or merges, expected both")
    kinds = own.get("token_type") or [1] * len(tokens)
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer, backend.decoder = known[cut](), decoders.ByteLevel()
    special = [token for token, each in zip(tokens, kinds, strict=True) if each in _SPECIAL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if own.get("add_bos_token"):
        first = tokens[own["bos_token_id"]]
        whole = processors.TemplateProcessing(f"{first} $A", special_tokens=[(first, own["bos_token_id"])])
        backend.post_processor = whole
    return backend
