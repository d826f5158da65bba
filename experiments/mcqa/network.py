"""The small decoder of the MCQA experiment, which ships with it: it points at an answer, then reads its letter.

    stage 1   the task alone, until it is solved
    stage 2   the task and the interchange of the whole stream at the last token after block 2, counted from 0:
              the base's letter at the source's pointer

Ordinary training binds letter and colour directly and has no pointer anywhere; the interchange makes one, and takes
from the last token, until that block, all knowledge of letters. After the last block the answer itself is there. What
else the stream holds there, and along which directions the pointer runs, nobody chose.

`retrain` writes the network and what is known of it anew; the same machine gives the same weights.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, accuracy, record, tally_handles
from abstraction.evaluation.iia import INVARIANT, SENSITIVE
from abstraction.interventions import state_sites
from abstraction.models import Decoder, DecoderConfig, Network, Prompts, TokenView, prompts_at
from abstraction.models.decoder_files import flat_parameters, read_decoder, save_decoder
from abstraction.tasks import mcqa
from abstraction.tasks.mcqa import FAMILIES, INPUTS, MODEL
from abstraction.tasks.prompts import WordTokenizer
from abstraction.tasks.symbols import symbol_classes
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.training.interchange import InterchangeLoss, LabelledPairs
from abstraction.typing import Params, Setting
from experiments.harness.files import write_atomically
from experiments.harness.provenance import provenance
from experiments.harness.records import digest
from experiments.harness.trainings import require_finite

SHIPPED = Path(__file__).parent / "weights"
LOG = "training.json"
TAP = "block_output"
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
      interchange_weight: of the interchange loss beside the task's.
      epochs: passes over the pairs, at most.
      warmup: steps until the learning rate is reached.
      learning_rate: AdamW's.
      final_rate: the share of it that a cosine ends at; 1 keeps it constant.
      solved: the stage ends when this share of held-out prompts is answered rightly; None for all its epochs.
    """

    interchange_weight: float
    epochs: int
    warmup: int
    learning_rate: float = 3e-3
    final_rate: float = 1.0
    solved: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is made.

    Attributes:
      pointer_block: the block after which the pointer is asked for.
      pairs: pairs that training draws from.
      batch_size: pairs per step: twice as many prompts.
      stages: one after another, each with an optimizer of its own.
      decay: of AdamW's second moment.
      weight_decay: AdamW's.
      held_out: pairs of each bank that judges the network; no prompt of it is trained on but by chance.
    """

    pointer_block: int = 2
    pairs: int = 8000
    batch_size: int = 32
    stages: tuple[Stage, ...] = (Stage(0.0, 6, 100, solved=0.98), Stage(1.0, 5, 50, final_rate=0.05))
    decay: float = 0.98
    weight_decay: float = 0.01
    held_out: int = 1200

    @property
    def steps(self) -> int:
        """Steps of one pass over the pairs."""
        return self.pairs // self.batch_size


RECIPE = Recipe()


def architecture(tokenizer: WordTokenizer) -> DecoderConfig:
    """Return the shape: Llama's, small."""
    return DecoderConfig(
        vocabulary=tokenizer.size,
        width=64,
        depth=4,
        heads=4,
        kv_heads=4,
        head_size=16,
        hidden=128,
        rope_theta=100.0,  # prompts are short
        embedding_scale=8.0,
        tied=False,
    )


def embedded_network(folder: Path = SHIPPED) -> tuple[Network, WordTokenizer]:
    """Read the network that ships with the project, or one that `retrain` has written.

    Returns:
      A decoder, whose outputs are the letters and the best other token; its tokenizer.

    Raises:
      ValueError: the file is damaged, or its vocabulary is not that of the prompts.
      FileNotFoundError: there is no such file.
    """
    tokenizer = WordTokenizer(mcqa.vocabulary())
    network = read_decoder(folder)
    words = cast(Decoder, network.model).config.vocabulary
    if words != tokenizer.size:
        raise ValueError(f"got a network of {words} words in {folder}, expected {tokenizer.size}")
    return network, tokenizer


def retrain(folder: Path, seed: int = 0, progress: Report = print, recipe: Recipe = RECIPE) -> None:
    """Train the network and write it to a folder, with the log of its training."""
    network, log = train_network(seed, progress, recipe)
    require_finite(network.params)
    save_decoder(network, folder)
    write_atomically(Path(folder) / LOG, (json.dumps(log, indent=1, allow_nan=False) + "\n").encode())


def train_network(seed: int, progress: Report, recipe: Recipe = RECIPE) -> tuple[Network, dict[str, Any]]:
    """Train the network.

    Args:
      seed: of everything that is drawn; it stands for this and the next few.
      progress: told about every pass over the pairs.
      recipe: how.

    Returns:
      The network, and the log: recipe, losses, what held-out pairs say, time, versions, digest of weights.
    """
    tokenizer = WordTokenizer(mcqa.vocabulary())
    whole = Decoder(architecture(tokenizer))
    answering = dataclasses.replace(whole, answers=symbol_classes(tokenizer), rest=True)
    sizes = {"calibration": recipe.held_out, "test": recipe.held_out}
    held_out = {role: drawn.bank for role, drawn in mcqa.make_banks(seed + 3, sizes).items()}
    start = time.perf_counter()
    pairs = training_pairs(np.random.default_rng(seed), recipe.pairs, tokenizer)
    params, history = whole.init(jax.random.key(seed)), []
    for number, stage in enumerate(recipe.stages):
        watched = _Watch(answering, tokenizer, held_out["calibration"])
        say = lambda epoch, metrics, number=number: progress(
            f"network, stage {number + 1}, epoch {epoch}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items())
        )
        trained = fit(
            jax.random.key(seed + 1 + number),
            InterchangeLoss(TokenView(whole, first=recipe.pointer_block), TAP, recipe.pointer_block, CLASSES.loss),
            params,
            _optimizer(recipe, stage),
            pairs,
            Schedule(
                recipe.batch_size, stage.epochs, None if stage.solved is None else Stop("accuracy", stage.solved, 1)
            ),
            Watch(watched, progress=say),
            context=np.array(stage.interchange_weight, np.float32),
        )
        params = trained.params
        history += [{"stage": number + 1, **metrics} for metrics in trained.history]
    log = {
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "steps": len(history) * recipe.steps,
        "history": history,
        "seconds": time.perf_counter() - start,
        "test": judge_network(Network(answering, params), tokenizer, held_out["test"]),
        "versions": provenance()["versions"],
        "weights": weights_digest(params),
    }
    return Network(answering, params), log


def judge_network(network: Network, tokenizer: WordTokenizer, bank: PairBank) -> dict[str, Any]:
    """Swap the whole stream at the last token after each block.

    Returns:
      `accuracy` of the bases, over the whole vocabulary; `sensitive` and `invariant` IIA of each variable after each
      block, None where there is no such pair.
    """
    seen = Network(TokenView(cast(Decoder, network.model)), network.params)
    recorded, tap = record(seen, lambda setting: encoded(setting, tokenizer), bank, tap=TAP), seen.taps[TAP]
    swaps = state_sites(tap).handles()
    answers = np.asarray(recorded.runs.outputs).argmax(axis=1)
    judged: dict[str, Any] = {"accuracy": accuracy(answers, bank.factual)}
    for index, name in enumerate(bank.variables):
        iia = tally_handles(seen, recorded, swaps, np.full(tap.depth, index)).iia
        for half, column in (("sensitive", SENSITIVE), ("invariant", INVARIANT)):
            values = [None if np.isnan(value) else round(float(value), 4) for value in iia[:, column]]
            judged[name] = {**judged.get(name, {}), half: values}
    return judged


def training_pairs(generator: np.random.Generator, count: int, tokenizer: WordTokenizer) -> LabelledPairs:
    """Draw pairs: a quarter of the sources are other questions, a quarter each of the families' counterfactuals."""
    base, other = mcqa.sample_settings(generator, count), mcqa.sample_settings(generator, count)
    kinds = [other, *(mcqa.counterfactual(generator, base, family) for family in FAMILIES)]
    kind, rows = generator.integers(0, len(kinds), count), np.arange(count)
    source = {name: np.stack([setting[name] for setting in kinds])[kind, rows] for name in INPUTS}
    labels = (
        MODEL.run(base)["answer"],
        MODEL.run(source)["answer"],
        MODEL.interchange(base, {"answer_pointer": source})["answer"],
    )
    labels = (np.asarray(label, np.int32) for label in labels)
    return LabelledPairs(encoded(base, tokenizer), encoded(source, tokenizer), *labels)


def encoded(setting: Setting, tokenizer: WordTokenizer) -> Prompts:
    """Write and tokenise prompts, to be looked at at their last token."""
    return prompts_at(mcqa.encode(setting, tokenizer).tokens)


def weights_digest(params: Params) -> str:
    """Return the SHA-256 of a network's weights."""
    return digest({name: np.asarray(leaf) for name, leaf in flat_parameters(params).items()})


@dataclasses.dataclass(frozen=True)
class _Watch:
    """What is seen of the network while it is trained, on the calibration pairs."""

    decoder: Decoder
    tokenizer: WordTokenizer
    bank: PairBank

    def __call__(self, params: Params) -> dict[str, float]:
        judged = judge_network(Network(self.decoder, params), self.tokenizer, self.bank)
        best = {name: max(judged[name]["sensitive"]) for name in self.bank.variables}
        return {"accuracy": judged["accuracy"], **best}


@cache
def _optimizer(recipe: Recipe, stage: Stage) -> optax.GradientTransformation:
    """Make the optimizer of a stage once: a new one would compile the epoch again."""
    rate, steps = stage.learning_rate, stage.epochs * recipe.steps
    schedule = (
        optax.warmup_cosine_decay_schedule(0.0, rate, stage.warmup, steps, rate * stage.final_rate)
        if stage.final_rate < 1
        else optax.linear_schedule(0.0, rate, stage.warmup)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=recipe.decay, weight_decay=recipe.weight_decay)
    )
