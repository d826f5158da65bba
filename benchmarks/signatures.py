"""Effect signatures of single hidden units: 48 sites, 1000 pairs (PLOT, Sec. 3.1).

The baseline is pyvene, called as the paper's code calls it: the network wrapped once per site, batches of 128 pairs,
source run and patched run in each, positions and coordinates per pair. Then the same loop with bare hooks, and two
ways to do less in eager PyTorch: sources recorded once and all pairs in one batch; all sites at once through
`torch.func.vmap`.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import jax
import torch
from torch import Tensor

from abstraction.interventions import SiteBank, unit_sites
from abstraction.interventions.handles import take_handle
from abstraction.localization.signatures import site_signatures
from benchmarks.problem import TAP, Problem, equality_problem
from benchmarks.records import Row, compare, measure, require_agreement
from benchmarks.torch_oracle import (
    DepthEdit,
    TorchMLP,
    depth_edits,
    looped_logits,
    measure_torch,
    patched_logits,
    prob_delta,
    record_hidden,
    tensor,
    torch_mlp,
)

try:
    import pyvene
except ImportError as error:
    raise ImportError("pyvene is not installed; install the baselines with: pip install -e '.[benchmarks]'") from error

PAIRS, BATCH = 1000, 128
BASELINE = f"pyvene, site by site, batches of {BATCH}, source run in each"


def run(budget: float) -> list[Row]:
    """Time every way to collect the signatures, recording of base and source runs included."""
    problem = equality_problem(PAIRS)
    sites = unit_sites(problem.network.taps[TAP])
    network = torch_mlp(problem.network.params)
    base, source = tensor(problem.fit.base["inputs"]), tensor(problem.fit.source["inputs"])
    edits = [edit for site in range(sites.size) for edit in depth_edits(take_handle(sites.handles(), site))]
    rivals: dict[str, Callable[[], Tensor]] = {
        BASELINE: lambda: pyvene_loop(network, base, source, edits),
        f"PyTorch hooks, site by site, batches of {BATCH}, source run in each": lambda: hook_loop(
            network, base, source, edits
        ),
        "PyTorch hooks, site by site, sources recorded once, one batch": lambda: one_batch_loop(
            network, base, source, edits
        ),
        "PyTorch vmap over sites, sources recorded once, one batch": lambda: vmapped(network, base, source, sites),
    }
    name = "abstraction"
    require_agreement({name: ours(problem, sites), **{rival: f() for rival, f in rivals.items()}}, atol=1e-5)
    timings = {rival: measure_torch(function, budget=budget) for rival, function in rivals.items()}
    timings[name] = measure(lambda: ours(problem, sites), budget=budget, compiled=True)
    return compare("signatures", f"{sites.size} sites x {PAIRS} pairs", timings, baseline=BASELINE)


def ours(problem: Problem, sites: SiteBank) -> jax.Array:
    """Record base and source runs, then measure all sites in one program."""
    return site_signatures(problem.network, problem.record(problem.fit).runs, sites)


def hook_loop(network: TorchMLP, base: Tensor, source: Tensor, edits: list[DepthEdit]) -> Tensor:
    """Run source and patched base for every site and batch."""
    with torch.no_grad():
        factual = network(base)
    return torch.stack([prob_delta(looped_logits(network, base, source, [edit], BATCH), factual) for edit in edits])


def one_batch_loop(network: TorchMLP, base: Tensor, source: Tensor, edits: list[DepthEdit]) -> Tensor:
    """Record the sources once, then run the patched base once for every site."""
    with torch.inference_mode():
        factual, states = network(base), record_hidden(network, source)
        return torch.stack([prob_delta(patched_logits(network, base, states, [edit]), factual) for edit in edits])


def vmapped(network: TorchMLP, base: Tensor, source: Tensor, sites: SiteBank) -> Tensor:
    """Record the sources once, then run the patched base for all sites at once, the site being a weight `[L, D]`."""
    weights = tensor(sites.rows())
    with torch.inference_mode():
        factual, states = network(base), record_hidden(network, source)

        def signature(weight: Tensor) -> Tensor:
            hidden = base
            for depth, layer in enumerate(network.layers):
                hidden = DepthEdit(depth, weight[depth])(layer(hidden), states[depth])
            return prob_delta(network.head(hidden), factual)

        return torch.func.vmap(signature)(weights)


def pyvene_loop(network: TorchMLP, base: Tensor, source: Tensor, edits: list[DepthEdit]) -> Tensor:
    """Wrap the network once per site; positions and coordinates are given per pair, as pyvene expects them."""
    with torch.no_grad():
        factual = network(base)
        return torch.stack([prob_delta(_pyvene_logits(network, base, source, edit), factual) for edit in edits])


def _pyvene_logits(network: TorchMLP, base: Tensor, source: Tensor, edit: DepthEdit) -> Tensor:
    wrapped = _wrap(_PyveneMLP(list(network.layers), network.head), edit.depth)
    coordinates = edit.weight.nonzero().flatten().tolist()
    outputs = []
    for start in range(0, len(base), BATCH):
        rows = slice(start, start + BATCH)
        count = len(base[rows])
        _, patched = wrapped(
            _inputs(base[rows]),
            [_inputs(source[rows])],
            {"sources->base": ([[[0]] * count], [[[0]] * count])},
            subspaces=[[coordinates] * count],
        )
        outputs.append(patched.squeeze(1))
    return torch.cat(outputs)


class _PyveneMLP(TorchMLP):
    """The network with the attributes that pyvene asks every model for."""

    config = SimpleNamespace()
    device = torch.device("cpu")


def _wrap(network: TorchMLP, depth: int) -> pyvene.IntervenableModel:
    representation = pyvene.RepresentationConfig(
        layer=depth,
        component=f"layers[{depth}].output",
        unit="pos",
        max_number_of_units=1,
        intervention=pyvene.VanillaIntervention(embed_dim=network.head.in_features),
    )
    config = pyvene.IntervenableConfig(model_type=type(network), representations=[representation])
    wrapped = pyvene.IntervenableModel(config, network)
    wrapped.disable_model_gradients()
    wrapped.disable_intervention_gradients()
    return wrapped


def _inputs(states: Tensor) -> Mapping[str, Tensor]:
    """Give the network's input a sequence axis of length one."""
    return {"inputs": states[:, None]}
