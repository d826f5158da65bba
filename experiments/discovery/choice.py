"""Discovery on multiple choice: a decoder whose MLPs are reduced in every block, and its two variables searched again.

The residual stream keeps its width, so the search is that of the experiment `mcqa`, and a handle of the dense network
fits every reduced one as it is. Pairs are those whose prompts the dense network answers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from abstraction.evaluation import CLASSES, accuracy
from abstraction.evaluation.interchange import view
from abstraction.interventions import factual_outputs
from abstraction.localization import Choice
from abstraction.localization.calibration import calibrate_candidates
from abstraction.models import Decoder, Network, UnrolledDecoder
from abstraction.models.decoder_unrolled import stacked_decoder, unrolled_decoder
from abstraction.reduction import METHODS as PRESETS
from abstraction.reduction import bill, reduce_network
from abstraction.tasks import mcqa
from abstraction.typing import Params, Setting
from experiments.discovery.networks import Known, Studied, Views, fidelities
from experiments.discovery.options import DENSE, Discovery
from experiments.harness.meshes import placed
from experiments.harness.methods import Bench, Outcome, Tell, same_time
from experiments.harness.progressive import METHODS, Stages
from experiments.harness.timing import Time
from experiments.mcqa.grids import VARIANTS
from experiments.mcqa.options import Mcqa
from experiments.mcqa.subject import Questions, Subject, make_bench

UNITS = "mlp_product"


class Samples(NamedTuple):
    """What networks are reduced and measured on, tokens `[N, T]`.

    Attributes:
      calibration: what a reduction looks at; no prompt of a test pair.
      evaluation: what accuracy and fidelity are measured on; no prompt of the calibration.
      answers: of the evaluation, `[N]`.
    """

    calibration: np.ndarray
    evaluation: np.ndarray
    answers: np.ndarray


def choice_prompts(config: Discovery, seed: int, subject: Subject, questions: Questions) -> Samples:
    """Draw prompts for reductions, and others to measure them on."""
    test = questions.banks["test"].bank
    tested = [_written(subject, questions, side) for side in (test.base, test.source)]
    draw = lambda seed, count: mcqa.sample_settings(np.random.default_rng(seed), count)
    calibration = _written(subject, questions, draw(seed + 2901, config.choice.calibration))
    calibration = calibration[apart(calibration, *tested)]
    settings = draw(seed + 2902, config.choice.evaluation)
    evaluation = _written(subject, questions, settings)
    new = apart(evaluation, calibration)
    return Samples(calibration, evaluation[new], np.asarray(mcqa.MODEL.run(settings)["answer"])[new])


def apart(tokens: Int[np.ndarray, "N T"], *taken: Int[np.ndarray, "M T"]) -> Bool[np.ndarray, " N"]:
    """Tell which prompts are in none of the others."""
    known = {row.tobytes() for others in taken for row in others}
    return np.array([row.tobytes() not in known for row in tokens])


def choice_networks(config: Discovery, seed: int, subject: Subject, samples: Samples, key: Array) -> Iterator[Studied]:
    """Yield the dense decoder, then every reduced one."""
    width, depth = subject.decoder.config.hidden, subject.decoder.config.depth
    everything, known = np.tile(np.arange(width), (depth, 1)), _behaviour(config, seed, subject, samples, {})
    yield Studied("mcqa", DENSE, subject.decoder, subject.network.params, everything, known)
    for keep in [keep for keep in config.choice.keeps if keep < width]:
        for method in config.choice.methods:
            yield reduced_decoder(config, seed, subject, samples, method, keep, jax.random.fold_in(key, keep))


def reduced_decoder(
    config: Discovery, seed: int, subject: Subject, samples: Samples, method: str, keep: int, key: Array
) -> Studied:
    """Reduce the MLPs of all blocks to one width, each on the network reduced so far."""
    dense = placed(Network(*unrolled_decoder(subject.decoder, subject.network.params)), config.mesh)
    taps = [f"{UNITS}{block}" for block in range(subject.decoder.config.depth)]
    found = reduce_network(dense, samples.calibration, dict.fromkeys(taps, keep), PRESETS[method], key=key)
    kept = np.stack([np.asarray(fold.kept) for fold in found.plan.folds])
    everything = np.arange(subject.decoder.config.hidden)
    views = {tap: (view(dense, tap, everything), found.view(tap), units) for tap, units in zip(taps, kept, strict=True)}
    decoder, params = stacked_decoder(_unrolled(found.network.model), found.network.params)
    smaller = placed(Network(decoder, params), config.mesh)
    known = _behaviour(config, seed, _as(subject, decoder, smaller.params), samples, views)
    return Studied("mcqa", method, decoder, smaller.params, kept, known)


def choice_bench(config: Discovery, network: Studied, subject: Subject, questions: Questions) -> Bench:
    """Record all banks in one network."""
    if not isinstance(network.model, Decoder):
        raise ValueError(f"got a network of {type(network.model).__name__}, expected a decoder")
    return make_bench(_as(subject, network.model, network.params), questions, _options(config))


def choice_found(bench: Bench, config: Discovery, key: Array, tell: Tell) -> dict[str, Outcome]:
    """Run PLOT coarse to fine on coordinates, and DAS at the blocks that Stage A chose."""
    stages = Stages(_options(config), bench, protocols=VARIANTS)
    found = {}
    for kind, name in (("plot", "plot-native"), ("das", "plot-das")):
        found[kind] = METHODS[name].run(stages, METHODS[name], key, lambda text, kind=kind: tell(f"{kind}, {text}"))
    return found


def carried(bench: Bench, dense: Choice) -> Outcome:
    """Take the handles of the dense network as they are; nothing is chosen anew."""
    owner = np.arange(len(bench.variables))
    choice = calibrate_candidates(
        bench.network, bench.evidence, dense.handles, owner, [{"kept_share": 1.0} for _ in owner],
        cost=np.zeros(len(owner)),
    )  # fmt: skip
    return Outcome(choice, same_time(Time()), {"kept_share": [1.0 for _ in owner]}, {})


def _behaviour(config: Discovery, seed: int, subject: Subject, samples: Samples, views: Views) -> Known:
    """Bill a network, and ask it questions that nothing was chosen by."""
    tokens = samples.evaluation
    cost = bill(subject.network, tokens.shape[1:], dtype=tokens.dtype)
    answered = np.asarray(factual_outputs(subject.network, tokens)).argmax(axis=-1)
    known = {("", "accuracy"): accuracy(answered, samples.answers)}
    known |= {("", name): float(value) for name, value in cost._asdict().items()}
    return known | fidelities(views, tokens, CLASSES, seed + 2903, config.choice.trials)


def _written(subject: Subject, questions: Questions, setting: Setting) -> Int[np.ndarray, "N T"]:
    encoded = mcqa.encode(setting, subject.tokenizer, questions.lexicon, length=questions.length)
    return np.asarray(encoded.tokens)


def _options(config: Discovery) -> Mcqa:
    return Mcqa(banks=config.choice_banks, das=config.choice_das)


def _as(subject: Subject, decoder: Decoder, params: Params) -> Subject:
    return subject._replace(network=Network(decoder, params))


def _unrolled(model: object) -> UnrolledDecoder:
    if not isinstance(model, UnrolledDecoder):
        raise ValueError(f"got a {type(model).__name__}, expected a decoder block by block")
    return model
