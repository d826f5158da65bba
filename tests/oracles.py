"""Slow NumPy in float64: what every kernel is compared with. Nothing here shares code with the library."""

import numpy as np


def mlp_layers(params, inputs, edit=None, activation="relu"):
    """Run an MLP layer by layer in float64; `edit(depth, hidden)` may replace each hidden state."""
    phi = {"relu": lambda z: np.maximum(z, 0.0), "tanh": np.tanh, "identity": lambda z: z}[activation]
    layers = [(params["stem"]["kernel"], params["stem"]["bias"])]
    if params.get("blocks") is not None:
        layers += list(zip(params["blocks"]["kernel"], params["blocks"]["bias"], strict=True))
    hidden, states = np.asarray(inputs, np.float64), []
    for depth, (kernel, bias) in enumerate(layers):
        hidden = phi(hidden @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64))
        if edit is not None:
            hidden = edit(depth, hidden)
        states.append(hidden)
    head = params["head"]
    return hidden @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"], np.float64), np.stack(states)


def patched_mlp(params, base, source, weight):
    """Interchange native coordinates by a weight `[L, D]`, each depth on states the shallower ones have changed."""
    _, states = mlp_layers(params, source)
    return mlp_layers(params, base, lambda depth, h: (1 - weight[depth]) * h + weight[depth] * states[depth])[0]


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def prob_delta_signature(patched, base):
    return (softmax(patched) - softmax(base)).T.reshape(-1)


def sinkhorn(cost, epsilon, *, beta_abstract=None, beta_neural=None, iterations=20_000):
    """Scale the kernel exp(-C/eps) in float64 until it stops moving; None is a hard marginal."""
    rows, columns = cost.shape
    a, b = np.full(rows, 1 / rows), np.full(columns, 1 / columns)
    exponent = lambda beta: 1.0 if beta is None else beta / (beta + epsilon)
    kernel = np.exp(-cost / epsilon)
    u, v = np.ones(rows), np.ones(columns)
    for _ in range(iterations):
        u = (a / (kernel @ v)) ** exponent(beta_abstract)
        v = (b / (kernel.T @ u)) ** exponent(beta_neural)
    return u[:, None] * kernel * v[None, :]


def clamped_sinkhorn(cost, epsilon, *, rho_abstract=1.0, rho_neural=1.0, iterations=500):
    """Loop the float32 kernel clamped at 1e-30: the numerics of the PLOT authors' solver, from its description."""
    f = np.float32
    rows, columns = cost.shape
    a, b = np.full(rows, 1 / rows, f), np.full(columns, 1 / columns, f)
    kernel = np.maximum(np.exp(-cost.astype(f) / f(epsilon)), f(1e-30))
    u, v = np.ones(rows, f), np.ones(columns, f)
    for _ in range(iterations):
        u = (a / np.maximum(kernel @ v, f(1e-30))) ** f(rho_abstract)
        v = (b / np.maximum(kernel.T @ u, f(1e-30))) ** f(rho_neural)
    return u[:, None] * kernel * v[None, :]


def iia(params, base, source, weight, labels, active, eligible):
    """Count hits on sensitive and invariant pairs, one pair at a time."""
    hits, pairs = [0, 0], [0, 0]
    for t in range(len(labels)):
        if not eligible[t]:
            continue
        half = 0 if active[t] else 1
        logits = patched_mlp(params, base[t : t + 1], source[t : t + 1], weight)[0]
        pairs[half] += 1
        hits[half] += int(np.argmax(logits) == labels[t])
    return hits, pairs


def top_k_handle(row, cost, size, by_cost):
    """Keep the heaviest sites of one row, renormalised; equal masses by cost or in order."""
    level = np.round(row / max(row.max(), 1e-30) / 1e-4)
    key = lambda j: (-level[j], cost[j], j) if by_cost else (-row[j], j)
    kept = sorted(range(len(row)), key=key)[:size]
    out = np.zeros_like(row)
    out[kept] = row[kept]
    return out / max(out.sum(), 1e-30)
