"""What the reduction of a language model asks of it: see `--explain`."""

from abstraction.explaining import Reading
from abstraction.models import Decoder
from abstraction.models.packaged import smollm2
from abstraction.models.weights import load_config
from abstraction.reduction import METHODS
from experiments.harness.explaining import Costs
from experiments.lm_reduction.options import TINY, LmReduction
from experiments.lm_reduction.subject import load_subject


def costs(config: LmReduction) -> Costs:
    """Return what a seed's network is asked by one calibration text, without the weights of a large model."""
    model, texts = config.network.model, config.texts
    if model == TINY:
        decoder = load_subject(TINY).network.model
        assert isinstance(decoder, Decoder)
    else:
        decoder = Decoder(load_config(smollm2() if model is None else model))
    drawn = tuple(sorted({METHODS[method].discrepancy for method in config.methods}))
    return Costs([Reading("lm-reduction", decoder, texts.calibration, texts.length, config.batch_size, drawn)])
