"""Our own file of a decoder: what is written comes back, and what is damaged is refused."""

import json
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
from hub_fields import TINY
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from abstraction.models import Decoder, Network
from abstraction.models.decoder_config import RopeScaling
from abstraction.models.decoder_files import FILE, read_decoder, save_decoder
from abstraction.models.hub_configs import config_from_hub

CONFIG = config_from_hub(TINY["gemma2"])
SAVED = [
    Decoder(CONFIG, ((1,), (2, 3)), rest=True),
    Decoder(replace(CONFIG, dtype="bfloat16", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), windowed=(), window=None)),
    Decoder(config_from_hub(TINY["gpt2"])),
]


@pytest.mark.parametrize("decoder", SAVED, ids=["gemma2", "bfloat16", "gpt2"])
def test_a_decoder_comes_back_from_its_file(decoder, tmp_path):
    params = decoder.init(jax.random.key(0))
    save_decoder(Network(decoder, params), tmp_path / "new")
    assert os.listdir(tmp_path / "new") == [FILE]
    loaded = read_decoder(tmp_path / "new")
    back, again = loaded.model, loaded.params
    assert back == decoder
    assert hash(back) == hash(decoder)
    assert jax.tree.map(lambda leaf: leaf.dtype, again) == jax.tree.map(lambda leaf: leaf.dtype, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    decoder = SAVED[2]
    save_decoder(Network(decoder, decoder.init(jax.random.key(0))), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_decoder(Network(decoder, decoder.init(jax.random.key(1))), tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [FILE]


def test_parameters_of_another_network_are_not_saved(tmp_path):
    params = SAVED[0].init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"blocks/attention_post_norm/scale.*expected nothing"):
        save_decoder(Network(SAVED[2], params), tmp_path)
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        read_decoder(tmp_path)
    decoder = SAVED[0]
    save_decoder(Network(decoder, decoder.init(jax.random.key(0))), tmp_path)
    with safe_open(tmp_path / FILE, framework="numpy") as file:
        header = file.metadata()
    arrays, about = load_file(tmp_path / FILE), json.loads(header["decoder"])

    def reads(message, arrays=arrays, about=about, **changes):
        save_file(arrays, tmp_path / FILE, header | {"decoder": json.dumps(about)} | changes)
        with pytest.raises(ValueError, match=message):
            read_decoder(tmp_path)

    reads("format 'other'", format="other")
    reads("extra: got .*expected nothing", arrays | {"extra": np.zeros(1)})
    reads("embedding: got nothing", {name: array for name, array in arrays.items() if name != "embedding"})
    reads(r"embedding: got float32\[3\], expected float32\[10, 8\]", arrays | {"embedding": np.zeros(3, np.float32)})
    reads("'surprise'.* missing or unknown", about=about | {"config": about["config"] | {"surprise": 1}})
    fewer = {name: value for name, value in about["config"].items() if name != "norm_offset"}
    reads("'norm_offset'.* missing or unknown", about=about | {"config": fewer})
    reads("at least 1", about=about | {"config": about["config"] | {"heads": 0}})
    reads("rest", about={name: value for name, value in about.items() if name != "rest"})
    (tmp_path / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot read a decoder"):
        read_decoder(tmp_path)
