"""`pack.json`, format version 1: what a pack is, which base it belongs to, and the digest of every file.

The manifest carries its own digest, the sha256 of its canonical JSON without that field. It is the pack's digest:
a change of any file shows in `files`, a change of any setting in `digest`.
"""

import dataclasses
import hashlib
import json
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mbjax.core.config import ModelConfig
from mbjax.io.model_config_json import config_json
from mbjax.io.pack_scores import Score, score_json
from mbjax.io.strict_json import canonical

FORMAT = 1
MANIFEST, TENSORS, SCORES, CARD, SIGNATURE = (
    "pack.json",
    "pack.safetensors",
    "scores.json",
    "README.md",
    "signature.json",
)
DTYPES = ("float32", "bfloat16")
QUANTISATIONS = ("none", "int8", "int4")  # of matrices, see `pack_quant`
MAX_MANIFEST = 4 * 2**20  # bytes
MAX_TENSOR_FILE = 64 * 2**30
MAX_OTHER_FILE = 16 * 2**20
MAX_FILES = 32
MAX_RANK = 16_384
MAX_ROUTE_TENSORS = 16
MAX_ROUTE_VALUES = 2**24
ID = "[a-z0-9][a-z0-9-]{0,63}"
_NUMBER = "(0|[1-9][0-9]{0,8})"
VERSION = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-[0-9A-Za-z.-]{{1,40}})?(\+[0-9A-Za-z.-]{{1,40}})?"  # semver.org 2.0.0
FILE_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # no separator, no leading dot: never leaves the directory
_ROUTE_NAME = r"route\.[a-z][a-z0-9_]{0,39}"


@dataclasses.dataclass(frozen=True)
class LoraPart:
    """Which maps a `lora` part touches: `targets` of `layers` with `rank`, but for the exceptions in `ranks`
    ("3.q": 8; rank 0: left alone). Scales are tensors."""

    rank: int
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    ranks: dict[str, int] = dataclasses.field(default_factory=dict)

    def rank_of(self, layer: int, target: str) -> int:
        """The rank of one map's delta, 0 where there is none."""
        usual = self.rank if layer in self.layers and target in self.targets else 0
        return self.ranks.get(f"{layer}.{target}", usual)


@dataclasses.dataclass(frozen=True)
class ExpertPart:
    """The shape of an `expert` part; heads, rotation and norms are those of the base's configuration."""

    n_layers: int
    d_model: int
    d_ff: int


@dataclasses.dataclass(frozen=True)
class BaseBinding:
    """The base a pack was trained on."""

    name: str
    digest: str
    tokenizer_digest: str
    template_digest: str | None
    config: ModelConfig  # its tap included


@dataclasses.dataclass(frozen=True)
class Compatible:
    """Another base that the pack may be used on, with what it scored there."""

    name: str
    digest: str
    tokenizer_digest: str
    scores: tuple[Score, ...]  # at least one


@dataclasses.dataclass(frozen=True)
class Route:
    """How the router knows the pack: shapes of its key tensors, and the calibrated probability that selects it."""

    tensors: dict[str, tuple[int, ...]]
    threshold: float  # [0, 1]
    background_digest: str


@dataclasses.dataclass(frozen=True)
class DataSource:
    name: str
    licence: str
    origin: str  # where it comes from: package and version, address, or file digest


@dataclasses.dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of `pack.json`."""

    id: str
    name: str
    version: str
    expert: ExpertPart | None
    lora: LoraPart | None
    base: BaseBinding
    compatible: tuple[Compatible, ...]
    route: Route | None
    dtype: str  # of matrices that are not quantised; norms, biases and scales are float32
    quantisation: str  # of the matrices; other than "none" only with dtype float32
    licence: str
    data: tuple[DataSource, ...]
    requires: tuple[str, ...]  # what a reader must know beyond format version 1: nothing yet
    created_by: str
    files: dict[str, FileEntry]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in ("expert", "lora") if getattr(self, part) is not None)

    @property
    def digest(self) -> str:
        """The pack's digest, 64 hex digits."""
        return hashlib.sha256(canonical(_to_json(self))).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files listed."""
        return sum(entry.bytes for entry in self.files.values())


def created_by(how: str = "") -> str:
    """The program that makes a pack, for `Manifest.created_by`, and how it came by it."""
    try:
        program = f"mbjax {version('mbjax')}"
    except PackageNotFoundError:  # run from a source tree
        program = "mbjax"
    return f"{program}, {how}" if how else program


def manifest_bytes(manifest: Manifest) -> bytes:
    """The text of `pack.json`."""
    document = _to_json(manifest) | {"digest": manifest.digest}
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def is_route_name(name: str) -> bool:
    """Whether a route tensor may be called so: `route.` and one plain word."""
    return re.fullmatch(_ROUTE_NAME, name) is not None


def _to_json(manifest: Manifest) -> dict[str, Any]:
    plain = dataclasses.asdict
    base = plain(manifest.base) | {"config": config_json(manifest.base.config)}
    compatible = [plain(entry) | {"scores": [score_json(s) for s in entry.scores]} for entry in manifest.compatible]
    return {
        "format": FORMAT,
        "id": manifest.id,
        "name": manifest.name,
        "version": manifest.version,
        "parts": {part: _listed(plain(getattr(manifest, part))) for part in manifest.parts},
        "base": base,
        "compatible": compatible,
        "route": _route_json(manifest.route),
        "dtype": manifest.dtype,
        "quantisation": manifest.quantisation,
        "licence": manifest.licence,
        "data": [plain(source) for source in manifest.data],
        "requires": list(manifest.requires),
        "created_by": manifest.created_by,
        "files": {name: plain(entry) for name, entry in manifest.files.items()},
    }


def _listed(document: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


def _route_json(route: Route | None) -> dict[str, Any] | None:
    if route is None:
        return None
    return {
        "tensors": {name: list(shape) for name, shape in route.tensors.items()},
        "threshold": float(route.threshold),
        "background_digest": route.background_digest,
    }
