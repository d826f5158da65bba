"""Side-by-side timings: every number next to a baseline that was measured in the same run.

    pip install -e '.[experiments,benchmarks]'
    python -m benchmarks                          all of them, a few minutes on two cores
    python -m benchmarks signatures das           some of them
    python -m benchmarks --out results.csv        rows as CSV

Implementations are first checked to compute the same thing, then timed: `seconds` is the fastest warm call,
`seconds_compile` what the first call took longer than that. PyTorch runs on the CPU, with one thread and with all, and
the faster counts; for a like-for-like comparison on a machine with an accelerator set `JAX_PLATFORMS=cpu`. Results on a
busy machine mean little.
"""
