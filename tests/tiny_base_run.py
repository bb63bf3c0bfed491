"""A small corpus on disk, and the configuration of a base that trains on it in seconds."""

import dataclasses
import json
import random
from pathlib import Path

import jax

from mbjax.core.base_train import AXES
from mbjax.core.config import ModelConfig
from mbjax.io.tokenizer import Tokenizer
from mbjax.training.base_config import BaseConfig, BaseLoopConfig, BaseOptimiserConfig, CorpusConfig
from mbjax.training.base_loop import BaseData
from mbjax.training.base_run import corpus_data
from mbjax.training.corpus import write_corpus
from mbjax.training.mesh import row_share
from mbjax.training.tokenizer import train_tokenizer

VOCAB, LENGTH = 384, 32
CONFIG = BaseConfig(
    name="small",
    tokenizer="tokenizer",
    data=(CorpusConfig("corpus"),),
    model=ModelConfig(
        n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=VOCAB, max_context=64
    ),
    optimiser=BaseOptimiserConfig(learning_rate=3e-3),
    loop=BaseLoopConfig(steps=12, rows=4, report_every=1, evaluate_every=6, checkpoint_every=3, evaluate_rows=8),
)


def write_data(folder: Path) -> Path:
    """tokenizer/ and corpus/ in a folder: two hundred short texts over a few hundred words."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 7))) for _ in range(300)]
    texts = [
        " ".join(rng.choice(words[:60] if i % 2 else words) for _ in range(rng.randint(8, 60))) for i in range(200)
    ]
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([source], folder / "tokenizer", vocab_size=VOCAB)
    write_corpus([source], folder / "tokenizer", folder / "corpus", row_length=LENGTH, held_out=0.1)
    return folder


def one_device() -> jax.sharding.Mesh:
    return jax.make_mesh((1, 1, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:1])


def data_of(config: BaseConfig, folder: Path, mesh: jax.sharding.Mesh) -> BaseData:
    return corpus_data(config, folder, Tokenizer.from_hf(folder / "tokenizer"), row_share(mesh, config.loop.rows))


def with_loop(config: BaseConfig = CONFIG, **changes: int) -> BaseConfig:
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, **changes))


def toml(config: BaseConfig) -> str:
    """The configuration as the command reads it."""
    values = dataclasses.asdict(config)
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if isinstance(value, str | float)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for corpus in values["data"]:
        lines += ["[[data]]", *(f"{key} = {json.dumps(value)}" for key, value in corpus.items())]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None)]
    return "\n".join(lines) + "\n"
