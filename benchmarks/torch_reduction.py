"""Mechanism reduction in PyTorch: what `benchmarks/reduction.py` is measured against."""

from collections.abc import Mapping

import numpy as np

try:
    import torch
    from torch.func import grad, jvp, vmap
except ImportError as error:
    raise ImportError("PyTorch is not installed; install the baselines with: pip install -e '.[benchmarks]'") from error

Network = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def torch_network(params: Mapping[str, Mapping[str, np.ndarray]]) -> Network:
    """Copy the weights of a chain of dense layers."""
    tensor = lambda values: torch.from_numpy(np.array(values))
    return {name: (tensor(layer["kernel"]), tensor(layer["bias"])) for name, layer in params.items()}


def elimination(metric: np.ndarray, covariance: np.ndarray, keep: int) -> np.ndarray:
    """Remove the unit of least |W_j|^2 / P_jj, fold it, downdate P; return what each removal added."""
    weights, inverse = torch.from_numpy(metric.copy()), torch.linalg.inv(torch.from_numpy(np.array(covariance)))
    live = torch.ones(weights.shape[1], dtype=torch.bool)
    increases = []
    for _ in range(weights.shape[1] - keep):
        scores = torch.where(live, (weights**2).sum(0) / inverse.diagonal(), torch.inf)
        j = int(scores.argmin())
        column, pivot = inverse[:, j].clone(), inverse[j, j].clone()
        weights -= torch.outer(weights[:, j], column) / pivot
        inverse -= torch.outer(column, column) / pivot
        inverse[j, :], inverse[:, j], inverse[j, j], weights[:, j], live[j] = 0.0, 0.0, 1.0, 0.0, False
        increases.append(scores[j])
    return torch.stack(increases).numpy()


def affine_loop(
    kept: np.ndarray,
    replaced: np.ndarray,
    weights: np.ndarray,
    count: int,
    ridge: float = 1e-4,
) -> np.ndarray:
    """Solve one weighted regression after the other, each on the kept units of largest correlation."""
    states, targets, scales = (torch.from_numpy(np.array(values)) for values in (kept, replaced, weights))
    penalty = ridge * torch.eye(count + 1, dtype=states.dtype)
    penalty[-1, -1] = 0.0
    ones = torch.ones(len(states), 1, dtype=states.dtype)
    standard = (states - states.mean(0)) / (states.std(0) + 1e-8)
    solved = []
    for j in range(targets.shape[1]):
        target = (targets[:, j] - targets[:, j].mean()) / (targets[:, j].std() + 1e-8)
        chosen = torch.topk((standard.T @ target).abs(), count).indices
        design = torch.cat([states[:, chosen], ones], dim=1)
        weighted = design * scales[:, j : j + 1]
        solved.append(torch.linalg.solve(weighted.T @ design + penalty, weighted.T @ targets[:, j])[:-1])
    return torch.stack(solved).numpy()


def affine_batch(
    kept: np.ndarray, replaced: np.ndarray, weights: np.ndarray, parents: np.ndarray, ridge: float = 1e-4
) -> np.ndarray:
    """Solve all weighted regressions at once."""
    states, targets, scales = (torch.from_numpy(np.array(values)) for values in (kept, replaced, weights))
    count = parents.shape[1]
    penalty = ridge * torch.eye(count + 1, dtype=states.dtype)
    penalty[-1, -1] = 0.0
    design = torch.ones(len(parents), len(states), count + 1, dtype=states.dtype)
    design[:, :, :-1] = states[:, torch.from_numpy(parents.reshape(-1))].reshape(len(states), -1, count).transpose(0, 1)
    weighted = design * scales.T[:, :, None]
    gram = weighted.transpose(1, 2) @ design + penalty
    return torch.linalg.solve(gram, (weighted.transpose(1, 2) @ targets.T[:, :, None]))[:, :-1, 0].numpy()


def last_layer_moments(network: Network, inputs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return E[h] of the last hidden layer by h = p W^2 - (p W)^2, and take the other moments the scores need."""
    with torch.no_grad():
        states = torch.from_numpy(inputs)
        for name in ("fc1", "fc2"):
            states = torch.relu(states @ network[name][0] + network[name][1])
        p = torch.softmax(states @ network["fc_out"][0] + network["fc_out"][1], dim=-1)
        weights = torch.from_numpy(np.array(kernel))
        curvature = p @ weights**2 - (p @ weights) ** 2
        moments = [(curvature * power).mean(0) for power in (torch.ones_like(states), states, states**2)]
        torch.cov(states.T)
    return moments[0].numpy()


def diagonal_by_classes(network: Network, inputs: np.ndarray) -> np.ndarray:
    """Return the GGN diagonal at the first hidden layer: one vjp per class of the softmax root."""
    states = torch.relu(torch.from_numpy(inputs) @ network["fc1"][0] + network["fc1"][1])
    outputs, pullback, *_ = torch.func.vjp(lambda h: _suffix(network, h), states)
    p = torch.softmax(outputs, dim=-1)
    root = p.sqrt()
    factor = torch.diag_embed(root) - p[:, :, None] * root[:, None, :]
    rows = vmap(lambda cotangent: pullback(cotangent)[0])(factor.permute(2, 0, 1).contiguous())
    return (rows**2).sum(0).detach().numpy()


def diagonal_by_products(network: Network, inputs: np.ndarray, chunk: int = 64) -> np.ndarray:
    """Return the Hessian diagonal at the first hidden layer by Hessian-vector products, one per unit."""
    states = torch.relu(torch.from_numpy(inputs) @ network["fc1"][0] + network["fc1"][1])
    target = torch.log_softmax(_suffix(network, states), dim=-1)

    def divergence(h: torch.Tensor) -> torch.Tensor:
        return (target.exp() * (target - torch.log_softmax(_suffix(network, h), dim=-1))).sum()

    def entry(basis: torch.Tensor) -> torch.Tensor:
        vector = basis.expand_as(states)
        return (vector * jvp(grad(divergence), (states,), (vector,))[1]).sum(1)

    entries = vmap(entry, chunk_size=chunk)(torch.eye(states.shape[1]))
    return entries.T.detach().numpy()


def _suffix(network: Network, hidden: torch.Tensor) -> torch.Tensor:
    after = torch.relu(hidden @ network["fc2"][0] + network["fc2"][1])
    return after @ network["fc_out"][0] + network["fc_out"][1]
