"""What is reported of frozen handles beyond their score: other scorers, other tokens, and the MIB track's JSON."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from abstraction.evaluation import tally_handles
from abstraction.interventions import Handle
from abstraction.interventions.handles import handle_depths
from abstraction.interventions.patching import handle_outputs
from abstraction.sharding import on_host
from abstraction.tasks import mcqa, symbols
from abstraction.tasks.mcqa import FAMILIES, LABELS
from experiments.harness.files import write_atomically
from experiments.harness.methods import Bench
from experiments.harness.outcomes import MOST, kept_pairs
from experiments.harness.results import Results
from experiments.mcqa.options import POSITIONS, Mcqa
from experiments.mcqa.subject import TAP, Questions, Subject, record_banks, token_positions, whole_vocabulary

NAME = "mcqa"
_MIB_NAMES = {"answer_pointer": "answer_pointer", "answer": "answer"}


def add_scorers(results: Results, bench: Bench, subject: Subject, handles: Handle, method: str) -> None:
    """Score the test pairs by every scorer of the paper's history, over all pairs alike; see `pooled_<scorer>`.

    Keeps the hits of the strict scorer, `[V, N]`, and the blocks of the handles, `[V]`, for `write_mib`.
    """
    bank = bench.tests["test"].bank
    outputs = on_host(handle_outputs(whole_vocabulary(bench), bench.tests["test"].runs, handles))
    classes, offered = symbols.symbol_classes(subject.tokenizer), np.stack([bank.base[name] for name in LABELS], axis=1)
    strict, pooled = [], {name: [] for name in symbols.SCORERS}
    for variable, logits, labels in zip(bench.variables, outputs, bank.labels, strict=True):
        hits = symbols.score(np.asarray(logits, np.float32), classes, subject.tokenizer, labels, offered)
        strict.append(hits["strict"])
        for name, values in hits.items():
            pooled[name].append(float(values.mean()))
            results.add(method, variable, "test", **{f"pooled_{name}": pooled[name][-1]})
    results.add(method, "mean", "test", **{f"pooled_{name}": float(np.mean(each)) for name, each in pooled.items()})
    results.arrays.update({f"{method}/hits": np.stack(strict), f"{method}/block": handle_depths(handles)})


def layer_sweep(subject: Subject, questions: Questions, config: Mcqa) -> tuple[np.ndarray, np.ndarray]:
    """Swap the whole residual stream after every block, at every token that has a name, on the test pairs.

    Returns:
      Combined IIA, `[P, V, L]`, and what the first pairs answer, `[P, L, n]`: -1 where that is not finite.
    """
    network, recorded = record_banks(subject, questions, config, POSITIONS, ("test",))
    tap, variables = network.taps[TAP], len(questions.banks["test"].bank.variables)
    depth = tap.depth
    blocks = np.arange(depth, dtype=np.int32)
    each = Handle(TAP, np.ones((depth, tap.width), np.float32), None, blocks)
    every = Handle(TAP, np.tile(each.weight, (variables, 1)), None, np.tile(blocks, variables))
    owner = np.repeat(np.arange(variables), depth)
    found, answers = [], []
    for position in POSITIONS:
        pairs = recorded[position, "test"]
        found.append(tally_handles(network, pairs, every, owner).combined.reshape(variables, depth))
        outputs = on_host(handle_outputs(network, pairs.runs, each))
        answers.append([np.asarray(pairs.readout.decode(jnp.asarray(one)))[:MOST] for one in outputs])
    return np.stack(found).astype(np.float32), np.array(answers, np.int32)


def written_pairs(bench: Bench, subject: Subject, questions: Questions, config: Mcqa) -> dict[str, Any]:
    """Write the first test pairs, with the place of every token that has a name, for the page of the run."""
    bank, spans = bench.tests["test"].bank, {}
    for side in ("base", "source"):
        setting = getattr(bank, side)
        encoded = mcqa.encode(setting, subject.tokenizer, questions.lexicon)
        spans[side] = {}
        for name in POSITIONS:
            at = token_positions(encoded, setting, questions.lexicon, name)
            spans[side][name] = [encoded.offsets[row, place].tolist() for row, place in enumerate(at)]
    kept = kept_pairs(bench, lambda setting: mcqa.render(setting, questions.lexicon), symbols.LETTERS, spans)
    return kept | {"token": config.position}


def write_mib(folder: Path, subject: Subject, questions: Questions, results: Results) -> None:
    """Write each method's results in the form of the MIB causal-variable track, a file per method.

    Scores are those of one chosen site per variable, by the strict scorer, on this run's test pairs; the track's own
    ranking wants all layers and its private data.
    """
    test = questions.banks["test"]
    for method in [name.removesuffix("/hits") for name in results.arrays if name.endswith("/hits")]:
        depths, hits = results.arrays[f"{method}/block"].tolist(), results.arrays[f"{method}/hits"]
        datasets = {}
        for index, family in enumerate(FAMILIES):
            units: dict[str, dict] = {}
            for variable, depth, scored in zip(test.bank.variables, depths, hits, strict=True):
                unit = f"[[AtomicModelUnit(id='ResidualStream(Layer-{depth},Token-last_token)')]]"
                entry = units.setdefault(unit, {"metadata": {"layer": depth, "position": "last_token"}})
                entry[_MIB_NAMES[variable]] = {"average_score": float(scored[np.asarray(test.family) == index].mean())}
            datasets[f"{family}_test"] = {"model_unit": units}
        content = {
            "method_name": method,
            "model_name": subject.name,
            "task_name": "4_answer_MCQA",
            "dataset": datasets,
        }
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / f"{method}-seed-{results.seed}.json", text.encode())
