"""One run of `mbjax train base`: from its configuration to an HF directory and a log of what happened."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from mbjax.core.base import Base
from mbjax.core.base_train import unstacked
from mbjax.errors import InputError
from mbjax.io.hf_export import llama_config, write_hf
from mbjax.io.tokenizer import Tokenizer
from mbjax.training.base_config import BaseConfig
from mbjax.training.base_data import BaseBatch, base_batches, row_targets
from mbjax.training.base_loop import BaseData, BaseEvent, BaseResult, train_base
from mbjax.training.corpus import Corpus, open_corpus
from mbjax.training.mesh import make_mesh, row_share
from mbjax.training.metrics_log import MetricsLog


def train_base_from_config(
    config: BaseConfig,
    folder: Path,
    out: Path,
    work: Path,
    watch: Callable[[BaseEvent], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> BaseResult:
    """Trains the base of a configuration whose paths are relative to `folder`.

    Once all steps are done the base is written to `out`; checkpoints and log lie in `work`, which a second call
    continues, on the same mesh or another. Every process of a run calls it alike and the first one writes. Raises
    InputError for data, tokenizer or mesh that do not fit, FailureError where training cannot go on.
    """
    mesh, model = make_mesh(config.mesh), config.model
    llama_config(model)  # what cannot be written must not end a long run
    tokenizer = Tokenizer.from_hf(folder / config.tokenizer)
    data = corpus_data(config, folder, tokenizer, row_share(mesh, config.loop.rows))
    first = jax.process_index() == 0
    with MetricsLog(work) if first else _Nowhere() as log:

        def watched(event: BaseEvent) -> None:
            log.write(event)
            watch(event)

        result = train_base(config, data, mesh, work, watched, stop)
    if result.finished:
        params = on_host(result.params)
        if first:
            write_hf(out, unstacked(params, model), model, folder / config.tokenizer)
    return result


def corpus_data(config: BaseConfig, folder: Path, tokenizer: Tokenizer, share: tuple[int, int]) -> BaseData:
    """Rows and held-out rows of a configuration's corpora, this process's share of each batch.

    Raises InputError for a corpus that is missing or damaged, or was not written with this tokenizer.
    """
    model, loop = config.model, config.loop
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(f"model.vocab_size {model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}")
    paths = {corpus.path: folder / corpus.path for corpus in config.data}
    for path in paths.values():
        info = open_corpus(path / "train").info
        if info.tokenizer_digest != tokenizer.digest:
            raise InputError(f"{path}: was written with another tokenizer than {config.tokenizer}; write it again")
        if info.row_length > model.max_context:
            raise InputError(f"{path}: rows of {info.row_length} tokens exceed model.max_context {model.max_context}")
    held_out = [open_corpus(path / "valid") for path in paths.values()]
    if not sum(map(len, held_out)):
        raise InputError(
            f"{', '.join(map(str, paths.values()))}: no held-out rows; write the corpus with a larger share"
        )
    process, processes = share
    mixture = {corpus.path: (paths[corpus.path] / "train", corpus.weight) for corpus in config.data}

    def batches(start: int) -> Iterator[BaseBatch]:
        return base_batches(mixture, rows=loop.rows, seed=loop.seed, start=start, process=process, processes=processes)

    def valid() -> Iterator[BaseBatch]:
        return held_out_batches(held_out, loop.rows, loop.evaluate_rows, process, processes)

    return BaseData(batches, valid, token_bytes(tokenizer, model.vocab_size))


def held_out_batches(
    corpora: list[Corpus], rows: int, most: int, process: int = 0, processes: int = 1
) -> Iterator[BaseBatch]:
    """Every held-out row once, or an even choice of at most `most` (0: all); the last batch is filled with padding."""
    places = [(corpus, i) for corpus in corpora for i in range(len(corpus))]
    if most and len(places) > most:
        places = [places[i * len(places) // most] for i in range(most)]
    own = rows // processes
    for start in range(0, len(places), rows):
        mine = places[start + process * own : start + (process + 1) * own]
        found = [corpus[i] for corpus, i in mine] if start + process * own < len(places) else []
        length = corpora[0].info.row_length
        tokens, segments, positions = (
            np.stack([row[key] for row in found] + [np.zeros(length, np.int32)] * (own - len(found))).astype(np.int32)
            for key in ("tokens", "segments", "positions")
        )
        yield BaseBatch(tokens, row_targets(tokens, segments), segments, positions)


def token_bytes(tokenizer: Tokenizer, n_vocab: int) -> np.ndarray:
    """How many bytes of text each token stands for, int32 [V]; 0 for special tokens and unused rows of the table."""
    sizes = [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    return np.asarray(sizes + [0] * (n_vocab - len(sizes)), np.int32)


def on_host(params: Base) -> Base:
    """Parameters that are spread over devices, of other processes too, whole and as numpy."""
    if jax.process_count() == 1:
        return jax.device_get(params)
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), params)


class _Nowhere:
    """Where the processes that do not write the log write it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, event: Any) -> None:
        pass
