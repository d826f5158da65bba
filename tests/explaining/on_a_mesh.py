"""Plan drivers for eight virtual devices and for one, in a process of its own; prints what differs, as JSON."""

import dataclasses
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax.numpy as jnp

from abstraction.explaining import Case, Searches, Where, plan_case, shape
from abstraction.models import MLP, Decoder, DecoderConfig, Prompts, TokenView
from abstraction.sharding import device_mesh

CASE = Case(
    "small", MLP(4, 8, 3, 2), lambda count: shape((count, 4)), "hidden", 40, 80,
    [Searches("das", 12, 4, 3, batch=20)], handles=(30, 10),
)  # fmt: skip
CONFIG = DecoderConfig(vocabulary=31, width=12, depth=2, heads=2, kv_heads=2, head_size=6, hidden=16)


def main() -> None:
    """Plan an MLP by pairs and candidates, and a decoder by pairs and heads."""
    mesh, where = device_mesh(pairs=2, candidates=2), Where.of()
    every = zip(
        plan_case(CASE, where),
        plan_case(dataclasses.replace(CASE, mesh=mesh), where._replace(place=mesh)),
        strict=True,
    )
    drivers = [
        {
            "driver": one.driver.size,
            "operations": [one.operations, shared.operations],
            "outputs": [each.ahead.footprint.outputs for each in (one, shared)],
        }
        for one, shared in every
    ]
    inputs = lambda count: Prompts(shape((count, 9), jnp.int32), shape((count,), jnp.int32))
    split = device_mesh(pairs=2, model=2)
    decoder = Case("decoder", TokenView(Decoder(CONFIG)), inputs, "block_output", 8, 16, handles=(0, 0), mesh=split)
    past = {leaf.sharding.shard_shape(leaf.shape) for each in decoder.runs().inputs.past for leaf in each}
    plans = list(plan_case(decoder, where._replace(place=split)))
    collectives = sum(sum(each.ahead.collectives.values()) for each in plans)
    print(json.dumps({"drivers": drivers, "past": sorted(past), "collectives": collectives}))


if __name__ == "__main__":
    main()
