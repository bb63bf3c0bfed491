"""The router's directory, `packs/router/`, format version 1: written all at once, read without trust.

`router.json` says which base and which background prompts it was made from and lists the digest of every other file;
`router.safetensors` holds the routing space and the background's places in it; `README.md` is its card.
"""

import dataclasses
import hashlib
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mbjax.errors import FailureError
from mbjax.io.pack_files import PackFolder, replaced_folder, with_folder, write_file
from mbjax.io.pack_manifest import CARD, FileEntry
from mbjax.io.pack_tensors import tensor_problems
from mbjax.io.safetensors_file import parse_tensors, write_safetensors
from mbjax.io.strict_json import Fields, canonical, parse_object, refuse

if TYPE_CHECKING:
    from mbjax.io.load import LoadedBase

FORMAT = 1
ROUTER = "router"  # the directory's name among the packs
MANIFEST, TENSORS = "router.json", "router.safetensors"
MAX_BACKGROUND = 4096
_MAX_MANIFEST, _MAX_CARD, _MAX_WIDTH = 2**16, 2**20, 65_536
_MAX_HEADER = 65_536  # bytes of three tensors' header, alignment included


@dataclasses.dataclass(frozen=True)
class RouterBase:
    """The base a router was made for."""

    name: str
    digest: str
    tokenizer_digest: str
    template_digest: str | None
    tap: int
    d_model: int


@dataclasses.dataclass(frozen=True)
class Router:
    """A router as it was read."""

    base: RouterBase
    mean: np.ndarray  # float32 [D]
    whitening: np.ndarray  # float32 [W, D]
    background: np.ndarray  # bfloat16 [N, W], the background prompts in the routing space
    background_digest: str  # sha256 of the prompts
    created_by: str
    card: str

    @property
    def shapes(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        return _shapes(self.background.shape[0], self.background.shape[1], self.base.d_model)


def is_router(path: Path) -> bool:
    """Whether a directory is a router's: so that `packs/*` may be named where packs are meant."""
    return (path / MANIFEST).is_file()


def base_of(base: "LoadedBase") -> RouterBase:
    """What a router says of a loaded base."""
    config = base.config
    digests = base.digest, base.tokenizer_digest, base.template_digest
    return RouterBase(base.name, *digests, config.tap, config.d_model)


def write_router(path: Path, router: Router) -> None:
    """Writes a router's directory; an old one at `path` stays until the new one is complete.

    Raises InputError where a field is out of bounds or `path` holds something else, FailureError where tensors are
    not finite or the system refuses to write.
    """
    arrays = {"mean": router.mean, "whitening": router.whitening, "background": router.background}
    if problems := tensor_problems(router.shapes, arrays):
        raise FailureError(f"{path}: not written: {'; '.join(problems)}")
    buffer = io.BytesIO()
    write_safetensors(buffer, router.shapes, arrays.items())
    content = {TENSORS: buffer.getvalue(), CARD: router.card.encode()}
    files = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in content.items()}
    document = _document(router, files)
    document["digest"] = hashlib.sha256(canonical(document)).hexdigest()
    text = (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with replaced_folder(path, MANIFEST, {MANIFEST, TENSORS, CARD}, "router") as temporary:
        for name, data in {**content, MANIFEST: text}.items():
            write_file(temporary / name, data)
        read_router(temporary)  # what cannot be read again is never put in place


def read_router(path: Path) -> Router:
    """Reads a router's directory: every file once, into private memory, its size and sha256 checked first.

    Raises InputError of one line naming file and reason for anything missing, damaged, oversized or not announced.
    """

    def read(folder: PackFolder) -> Router:
        where = folder.path / MANIFEST
        text = folder.read(MANIFEST, lambda size: size <= _MAX_MANIFEST or f"has {size} bytes, at most {_MAX_MANIFEST}")
        base, about, files = _read_manifest(text, str(where))
        shapes = _shapes(about["n"], about["width"], base.d_model)
        values = sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())
        if not values < files[TENSORS].bytes <= values + _MAX_HEADER:
            refuse(str(where), f"files.{TENSORS}.bytes is {files[TENSORS].bytes}, but the tensors take {values}")
        data = {name: folder.listed(name, entry) for name, entry in files.items()}
        tensors, _ = parse_tensors(data[TENSORS], folder.path / TENSORS)
        if problems := tensor_problems(shapes, tensors):
            refuse(str(folder.path / TENSORS), "; ".join(problems))
        card = str(data[CARD], "utf-8", "replace")
        return Router(base, **tensors, background_digest=about["digest"], created_by=about["created_by"], card=card)

    return with_folder(Path(path), read)


def load_router(path: Path, base: "LoadedBase", *, force_base: bool = False) -> Router:
    """A router for use with `base`: made for it, by digest, with its tokenizer and its template.

    Raises InputError where it is not (with `force_base` only where its shapes do not fit), and as `read_router` does.
    """
    router, mine = read_router(path), base_of(base)
    if (router.base.tap, router.base.d_model) != (mine.tap, mine.d_model):
        refuse(str(path), f"was made for the tap of {router.base.name}, which {mine.name} does not have")
    if not force_base and dataclasses.replace(router.base, name=mine.name) != mine:
        refuse(str(path), f"was made for {router.base.name}, not for {mine.name}; run mbjax train router")
    return router


def router_bytes(path: Path) -> int:
    """The most that a router at `path` takes in memory; 0 where there is none."""
    file = path / TENSORS
    return file.stat().st_size if file.is_file() else 0


def _shapes(n: int, width: int, d_model: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {
        "mean": (np.dtype(np.float32), (d_model,)),
        "whitening": (np.dtype(np.float32), (width, d_model)),
        "background": (np.dtype(ml_dtypes.bfloat16), (n, width)),
    }


def _document(router: Router, files: dict[str, FileEntry]) -> dict[str, Any]:
    n, width = router.background.shape
    return {
        "format": FORMAT,
        "base": dataclasses.asdict(router.base),
        "background": {"digest": router.background_digest, "n": n},
        "width": width,
        "created_by": router.created_by,
        "files": {name: dataclasses.asdict(entry) for name, entry in files.items()},
    }


def _read_manifest(data: bytes, where: str) -> tuple[RouterBase, dict[str, Any], dict[str, FileEntry]]:
    document = parse_object(data, where)
    stated = {key: value for key, value in document.items() if key != "digest"}
    fields = Fields(document, where)
    if type(document.get("format")) is not int or document["format"] != FORMAT:
        fields.refuse("format", f"must be {FORMAT}; for another version, update mbjax")
    fields.take("format")
    if fields.digest("digest") != hashlib.sha256(canonical(stated)).hexdigest():
        fields.refuse("digest", "does not match the other fields: the file was changed or damaged")
    base, background = _read_base(fields.object("base")), fields.object("background")
    about = {
        "digest": background.digest("digest"),
        "n": background.integer("n", 1, MAX_BACKGROUND),
        "width": fields.integer("width", 1, _MAX_WIDTH),
        "created_by": fields.text("created_by", 500),
    }
    background.done()
    files = _read_files(fields.object("files"))
    fields.done()
    return base, about, files


def _read_base(fields: Fields) -> RouterBase:
    template = fields.digest("template_digest") if fields.has("template_digest") else None
    base = RouterBase(
        name=fields.text("name", 200),
        digest=fields.digest("digest"),
        tokenizer_digest=fields.digest("tokenizer_digest"),
        template_digest=template,
        tap=fields.integer("tap", 0, 10_000),
        d_model=fields.integer("d_model", 1, _MAX_WIDTH),
    )
    fields.done()
    return base


def _read_files(table: Fields) -> dict[str, FileEntry]:
    files = {}
    for name, most in ((TENSORS, 2**32), (CARD, _MAX_CARD)):
        entry = table.object(name)
        files[name] = FileEntry(entry.digest("sha256"), entry.integer("bytes", 0, most))
        entry.done()
    table.done()
    return files
