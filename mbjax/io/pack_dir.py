"""Pack directories, format version 1: written all at once, read without trust."""

import contextlib
import dataclasses
import hashlib
import io
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbjax.core.pack import Pack
from mbjax.core.param import mismatches
from mbjax.errors import FailureError, InputError
from mbjax.io.base_forms import Specs
from mbjax.io.pack_files import PackFolder, replaced_pack, with_folder, write_file
from mbjax.io.pack_manifest import (
    CARD,
    MANIFEST,
    SCORES,
    TENSORS,
    BaseBinding,
    Compatible,
    DataSource,
    FileEntry,
    Manifest,
    Route,
    manifest_bytes,
)
from mbjax.io.pack_manifest_reader import read_manifest
from mbjax.io.pack_quant import SCHEMES, quantised, restored, stored_specs
from mbjax.io.pack_scores import Score, read_scores, scores_bytes
from mbjax.io.pack_tensors import announced, declared, from_named, named, parts_of, tensor_problems
from mbjax.io.safetensors_file import parse_tensors, write_safetensors
from mbjax.io.strict_json import refuse

ROUTE_PREFIX = "route."
_HEADER_OF_FILE, _HEADER_PER_TENSOR = 65_536, 512  # bytes: what a safetensors header of known tensors may take


@dataclasses.dataclass(frozen=True)
class About:
    """What the author of a pack says of it; the rest of the manifest follows from the tensors and files."""

    id: str
    name: str
    version: str
    base: BaseBinding
    licence: str
    created_by: str
    data: tuple[DataSource, ...] = ()
    compatible: tuple[Compatible, ...] = ()


@dataclasses.dataclass(frozen=True)
class RouteKey:
    """The pack's key in the routing space: arrays of at most three axes by plain names such as `vectors`."""

    tensors: dict[str, np.ndarray]  # float32
    threshold: float  # calibrated probability from which the pack is selected
    background_digest: str


@dataclasses.dataclass(frozen=True)
class StoredPack:
    """A pack as it was read: numpy arrays over memory of its own.

    `params` is the pack, quantised matrices in float32 again; `tensors` all that is in the file, as it is there.
    """

    params: Pack
    tensors: dict[str, np.ndarray]
    manifest: Manifest
    route: RouteKey | None
    scores: tuple[Score, ...]
    card: str
    more_files: dict[str, bytes]


def write_pack(
    path: Path,
    pack: Pack,
    about: About,
    *,
    scores: Sequence[Score] = (),
    card: str,
    dtype: str = "float32",
    route: RouteKey | None = None,
    more_files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Writes a pack directory and returns its manifest; an old pack at `path` stays until the new one is complete.

    Args:
      pack: the tensors, of the shape that `about.base.config` asks for.
      card: the text of README.md.
      dtype: of the matrices in the file, `float32`, `bfloat16`, `int8` or `int4`; norms, biases, scales and the route
        key stay float32.
      more_files: others that belong to the pack (a picture for the card), by plain file name.

    Raises InputError where a field is out of bounds or the pack does not fit the base, FailureError where tensors
    are not finite or the system refuses to write.
    """
    manifest = _unfilled(pack, about, dtype, route)
    tensors = _tensors(pack, manifest, path) | _route_tensors(route)
    if problems := tensor_problems(_specs(manifest, named(_announced(manifest))), tensors):
        raise FailureError(f"{path}: not written: {'; '.join(problems)}")
    return _write(path, manifest, tensors, scores, card, more_files or {})


def read_pack(path: Path, check: Callable[[Manifest], None] = lambda _: None) -> StoredPack:
    """Reads a pack directory: every file once, into private memory, its size and sha256 checked first.

    `check` sees the manifest before any tensor is read and may raise. Raises InputError of one line naming file and
    reason for anything missing, damaged, oversized, not announced or not finite; nothing is half-loaded.
    """

    def read(folder: PackFolder) -> StoredPack:
        manifest = folder.manifest()
        for name in sorted(manifest.files, key=lambda name: name == TENSORS):  # the small ones first: they would wait
            folder.announce(name)
        check(manifest)
        shape = _announced(manifest)
        leaves = named(shape)
        wanted = _specs(manifest, leaves)
        _check_size(wanted, manifest.files[TENSORS].bytes, folder.path / MANIFEST)
        where, early = folder.path / TENSORS, []

        def begun(data: memoryview) -> None:
            with contextlib.suppress(InputError):  # it is said below, once the file is known to be the manifest's
                early.append(_parsed(wanted, data, where))

        data = {name: folder.listed(name, entry, begun if name == TENSORS else None)
                for name, entry in manifest.files.items()}  # fmt: skip
        tensors = early[0] if early else _parsed(wanted, data[TENSORS], where)
        if problems := tensor_problems(wanted, tensors):
            refuse(str(where), "; ".join(problems))
        return StoredPack(
            params=from_named(shape, restored(leaves, tensors, manifest.quantisation)),
            tensors=tensors,
            manifest=manifest,
            route=_route_key(manifest, tensors),
            scores=read_scores(bytes(data[SCORES]), str(folder.path / SCORES)),
            card=_text(data[CARD], str(folder.path / CARD)),
            more_files={name: bytes(data[name]) for name in data if name not in (TENSORS, SCORES, CARD)},
        )

    return with_folder(Path(path), read)


def update_pack(
    path: Path,
    *,
    scores: Sequence[Score] | None = None,
    card: str | None = None,
    route: RouteKey | None = None,
    compatible: Sequence[Compatible] | None = None,
) -> Manifest:
    """Writes a pack directory again with what is given exchanged and the rest, tensors included, as it was.

    Raises as `read_pack` and `write_pack` do; until the new pack is complete the old one stays.
    """
    old = read_pack(path)
    manifest, tensors = old.manifest, old.tensors
    if compatible is not None:
        manifest = dataclasses.replace(manifest, compatible=tuple(compatible))
    if route is not None:
        own = {name: array for name, array in tensors.items() if not name.startswith(ROUTE_PREFIX)}
        manifest, tensors = dataclasses.replace(manifest, route=_stored_route(route)), own | _route_tensors(route)
    scores, card = old.scores if scores is None else scores, old.card if card is None else card
    return _write(path, manifest, tensors, scores, card, old.more_files)


def _write(
    path: Path,
    manifest: Manifest,
    tensors: Mapping[str, np.ndarray],
    scores: Sequence[Score],
    card: str,
    more_files: Mapping[str, bytes],
) -> Manifest:
    """The directory from a manifest whose `files` are still to be filled in."""
    buffer = io.BytesIO()
    write_safetensors(buffer, _specs(manifest, named(_announced(manifest))), tensors.items())
    content = {TENSORS: buffer.getvalue(), SCORES: scores_bytes(scores), CARD: card.encode(), **more_files}
    files = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()}
    content[MANIFEST] = manifest_bytes(manifest := dataclasses.replace(manifest, files=files))
    read_manifest(content[MANIFEST], str(path / MANIFEST))  # states what is out of bounds under the final name
    read_scores(content[SCORES], str(path / SCORES))
    with replaced_pack(path) as temporary:
        for name, data in content.items():
            write_file(temporary / name, data)
        read_pack(temporary)  # what cannot be read again is never put in place
    return manifest


def _unfilled(pack: Pack, about: About, dtype: str, route: RouteKey | None) -> Manifest:
    expert, lora = parts_of(pack)
    fields = {field.name: getattr(about, field.name) for field in dataclasses.fields(about)}
    return Manifest(
        **fields,
        expert=expert,
        lora=lora,
        route=None if route is None else _stored_route(route),
        dtype="float32" if dtype in SCHEMES else dtype,
        quantisation=dtype if dtype in SCHEMES else "none",
        requires=(),
        files={},
    )


def _stored_route(route: RouteKey) -> Route:
    shapes = {name: tuple(array.shape) for name, array in _route_tensors(route).items()}
    return Route(shapes, route.threshold, route.background_digest)


def _route_tensors(route: RouteKey | None) -> dict[str, np.ndarray]:
    keys = route.tensors if route is not None else {}
    return {ROUTE_PREFIX + name: np.asarray(array, np.float32) for name, array in keys.items()}


def _announced(manifest: Manifest) -> Pack:
    return announced(manifest.expert, manifest.lora, manifest.base.config, manifest.dtype)


def _specs(manifest: Manifest, leaves: Mapping[str, Any]) -> Specs:
    """dtype and shape of every tensor that a manifest announces, whose pack has these leaves by name."""
    specs = stored_specs(leaves, manifest.quantisation)
    shapes = manifest.route.tensors if manifest.route is not None else {}
    return specs | {name: (np.dtype(np.float32), shape) for name, shape in shapes.items()}


def _tensors(pack: Pack, manifest: Manifest, path: Path) -> dict[str, np.ndarray]:
    """A pack's tensors as the file has them, if the pack fits the base that the manifest names."""
    shape = declared(manifest.expert, manifest.lora, manifest.base.config)
    if pack.expert is not None and shape.expert is not None and pack.expert.config != shape.expert.config:
        refuse(str(path), f"the expert's settings are not those of an expert on the base {manifest.base.name}")
    if lines := mismatches(shape, pack):
        refuse(str(path), f"the pack does not fit the base {manifest.base.name}: {'; '.join(lines[:5])}")
    dtypes = {name: np.dtype(leaf.dtype) for name, leaf in named(_announced(manifest)).items()}
    with np.errstate(over="ignore"):  # a value too large for bfloat16 becomes infinite: the caller looks for that
        leaves = {name: np.asarray(leaf).astype(dtypes[name]) for name, leaf in named(pack).items()}
    return quantised(leaves, manifest.quantisation)


def _check_size(wanted: Specs, size: int, where: Path) -> None:
    """The tensors' file may be as large as the announced tensors make it: nothing else is read into memory."""
    values = sum(dtype.itemsize * math.prod(shape) for dtype, shape in wanted.values())
    if not values < size <= values + _longest_header(wanted):
        refuse(str(where), f"files.{TENSORS}.bytes is {size}, but the parts announced take {values} and a header")


def _longest_header(wanted: Specs) -> int:
    return _HEADER_OF_FILE + _HEADER_PER_TENSOR * len(wanted)


def _parsed(wanted: Specs, data: bytes | memoryview, where: Path) -> dict[str, np.ndarray]:
    length = struct.unpack("<Q", data[:8])[0]  # there are eight bytes: `_check_size`
    if length > _longest_header(wanted):
        refuse(str(where), f"its header of {length} bytes is too long for {len(wanted)} tensors")
    return parse_tensors(data, where)[0]


def _route_key(manifest: Manifest, tensors: dict[str, np.ndarray]) -> RouteKey | None:
    route = manifest.route
    if route is None:
        return None
    keys = {name.removeprefix(ROUTE_PREFIX): tensors[name] for name in route.tensors}
    return RouteKey(keys, route.threshold, route.background_digest)


def _text(data: bytes | memoryview, where: str) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        refuse(where, "is not UTF-8 text")
