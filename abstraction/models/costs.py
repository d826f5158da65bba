"""What a decoder costs, counted: arithmetic in multiply-adds of two operations each, memory in bytes.

    block(S, T)  =  2 S [D (H + 2 K) E + H E D + m D M]  +  4 S T H E                  m = 3 with a gate, 2 without
    forward(T)   =  L block(T, T)  +  2 D C                (the last token read; T times as many where every token is)
    suffix(l)    =  (L - l - 2) block(S, T)  +  last(S, T)  +  2 D C      after block l; within it a block more
    last(S, T)   =  block(1, T)  +  4 (S - 1) D K E        of other tokens the last block makes keys and values alone

with S fresh of T tokens, H query and K key-value heads of size E, M MLP units and C outputs. These are the matrix
products: norms, rotations, softmax and biases are a few per mille of them and left out. Scores are counted as they are
computed, masked ones too. Python integers only, so that nothing overflows and nothing is compiled.
"""

from abstraction.models.decoder_config import DecoderConfig, is_count

_BYTES = {"float32": 4, "bfloat16": 2}
_FLOAT32 = _INT32 = 4


def block_flops(config: DecoderConfig, tokens: int, seen: int) -> int:
    """Count the operations of one block of one prompt.

    Args:
      config: the decoder.
      tokens: fresh tokens S.
      seen: tokens T they attend over, earlier and fresh.
    """
    heads = config.heads * config.head_size
    return 2 * tokens * _kernels(config) + 4 * tokens * seen * heads


def last_block_flops(config: DecoderConfig, tokens: int, seen: int) -> int:
    """Count the operations of the last block, of whose fresh tokens the last one alone is read; see `block_flops`."""
    return block_flops(config, 1, seen) + 4 * (tokens - 1) * config.width * config.kv_heads * config.head_size


def read_flops(config: DecoderConfig, outputs: int) -> int:
    """Count the operations of reading some logits at one token; for answer symbols, of all their tokens."""
    return 2 * config.width * outputs


def forward_flops(config: DecoderConfig, tokens: int, *, outputs: int, every_token: bool = False) -> int:
    """Count the operations of a whole run of one prompt.

    Args:
      config: the decoder.
      tokens: of the prompt, T.
      outputs: logits read, C.
      every_token: they are read at every token, as Hugging Face's models do by default, not at the last one alone.

    Raises:
      ValueError: a count below 1.
    """
    _check_counts(tokens=tokens, outputs=outputs)
    reads = tokens if every_token else 1
    return config.depth * block_flops(config, tokens, tokens) + reads * read_flops(config, outputs)


def suffix_flops(
    config: DecoderConfig, depth: int, tokens: int, *, window: int = 1, outputs: int, inside: bool = False
) -> int:
    """Count the operations of one edit of one prompt that has been recorded.

    Args:
      config: the decoder.
      depth: the block after which the edit is, l.
      tokens: of the prompt, T.
      window: tokens at the end that are run again, S.
      outputs: logits read, C.
      inside: the edit is within the block, which is run again, or before it, and not after it.

    Raises:
      ValueError: there is no such block, the window is longer than the prompt, or a count below 1.
    """
    if depth not in range(config.depth):
        raise ValueError(f"got an edit after block {depth}, expected 0 to {config.depth - 1}")
    _check_window(tokens, window)
    _check_counts(outputs=outputs)
    blocks, read = config.depth - depth - 1 + inside, read_flops(config, outputs)
    if blocks == 0:
        return read
    return (blocks - 1) * block_flops(config, window, tokens) + last_block_flops(config, window, tokens) + read


def parameter_bytes(config: DecoderConfig) -> int:
    """Return the size of all parameters."""
    kinds = 2 if config.norm == "layer" else 1
    norm = config.width * kinds
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    biases = (queries + 2 * keys) * config.qkv_bias + config.width * config.output_bias
    biases += ((1 + config.gated) * config.hidden + config.width) * config.mlp_bias
    norms = (4 if config.post_norms else 2) * norm + 2 * config.head_size * kinds * config.query_key_norms
    block = _kernels(config) + biases + norms
    tables = (1 if config.tied else 2) * config.vocabulary + (config.learned_positions or 0)
    return _BYTES[config.dtype] * (tables * config.width + config.depth * block + norm)


def recording_bytes(config: DecoderConfig, prompts: int, tokens: int, window: int = 1, positions: int = 1) -> int:
    """Return the size of what `TokenView.record` keeps of N prompts for edits of `block_output`, outputs aside.

    That is the tokens, keys and values before the window, the residual stream of the window where it is more than a
    token, and that of the P chosen tokens after every block.

    Raises:
      ValueError: the window is longer than the prompts, or a count below 1.
    """
    _check_window(tokens, window)
    _check_counts(prompts=prompts, positions=positions)
    past = 2 * (tokens - window) * config.kv_heads * config.head_size
    streams = config.width * (positions + (window if window > 1 else 0))
    return prompts * (_BYTES[config.dtype] * config.depth * (past + streams) + _INT32 * (tokens + positions))


def suffix_bytes(
    config: DecoderConfig, prompts: int, tokens: int, window: int = 1, handles: int = 1, *, outputs: int
) -> int:
    """Estimate the working set of one chunk of handles: the largest of three steps, and the residual stream beside it.

    The steps are attention (scores and their softmax, float32), the MLP (hidden units, twice with a gate) and the
    logits (float32). A compiler that fuses needs less, one that copies more: an estimate to choose a chunk by.

    Args:
      config: the decoder.
      prompts: prompts N.
      tokens: of each, T.
      window: tokens run again, S.
      handles: run at once.
      outputs: logits read, C.

    Raises:
      ValueError: the window is longer than the prompts, or a count below 1.
    """
    _check_window(tokens, window)
    _check_counts(prompts=prompts, handles=handles, outputs=outputs)
    scores = 2 * _FLOAT32 * window * tokens * config.heads
    units = _BYTES[config.dtype] * window * config.hidden * (2 if config.gated else 1)
    stream = 2 * _BYTES[config.dtype] * window * config.width
    return handles * prompts * (stream + max(scores, units, _FLOAT32 * outputs))


def _kernels(config: DecoderConfig) -> int:
    """Count the entries of the matrices of one block."""
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    attention = config.width * (queries + 2 * keys) + queries * config.width
    return attention + (3 if config.gated else 2) * config.width * config.hidden


def _check_window(tokens: int, window: int) -> None:
    _check_counts(tokens=tokens)
    if not is_count(window) or window > tokens:
        raise ValueError(f"got a window of {window} tokens, expected 1 to {tokens}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not is_count(count):
            raise ValueError(f"got {name} {count!r}, expected a whole number of at least 1")
