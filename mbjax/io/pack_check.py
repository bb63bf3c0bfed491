"""What is wrong with a pack directory, and which packs a directory holds."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbjax.errors import InputError
from mbjax.io.files import mbjax_home
from mbjax.io.pack_dir import read_pack
from mbjax.io.pack_files import PackFolder, with_folder
from mbjax.io.pack_manifest import MANIFEST, SIGNATURE, TENSORS, Manifest
from mbjax.io.strict_json import refuse, shown


@dataclasses.dataclass(frozen=True)
class PackSummary:
    """One line of `pack list`. `manifest` is None, and `id` the directory's name, where it cannot be read."""

    id: str
    path: Path
    manifest: Manifest | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry of `pack list --json`; null is what cannot be known."""
        manifest = self.manifest
        return {
            "id": self.id,
            "name": manifest and manifest.name,
            "version": manifest and manifest.version,
            "parts": manifest and list(manifest.parts),
            "bytes": manifest and manifest.bytes,
            "base": manifest and manifest.base.name,
            "base_digest": manifest and manifest.base.digest,
            "digest": manifest and manifest.digest,
            "path": str(self.path),
            "problems": list(self.problems),
        }


def verify_pack(path: Path) -> list[str]:
    """Everything that is wrong with a pack directory, one line each; empty for a sound pack.

    Every file is read and hashed, every tensor checked. Unlike `read_pack` it goes on after the first problem, and it
    also names files that belong to nothing.
    """

    found: list[str] = []

    def look(folder: PackFolder) -> None:
        manifest = folder.manifest()
        found.extend(_strangers(folder, manifest))
        for name, entry in manifest.files.items():
            found.extend(_problems_of(lambda name=name, entry=entry: folder.listed(name, entry)))

    found += [*_problems_of(lambda: with_folder(path, look)), *_problems_of(lambda: read_pack(path))]
    return list(dict.fromkeys(found))


def summarise_pack(path: Path, *, verify: bool = False) -> PackSummary:
    """Manifest and problems of one pack; without `verify` only its manifest and its files' presence are checked."""
    try:
        manifest = with_folder(path, PackFolder.manifest)
    except InputError as error:
        return PackSummary(_shown_name(path), path, None, (str(error),))
    problems = verify_pack(path) if verify else _missing(path, manifest)
    return PackSummary(manifest.id, path, manifest, tuple(problems))


def list_packs(path: Path, *, verify: bool = False) -> list[PackSummary]:
    """The packs in a directory of packs, by name; other directories (the router's) are passed over.

    Raises InputError where `path` is no directory. A pack that is damaged, or shares its id with another, is listed
    with its problems.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        refuse(str(path), f"cannot be listed: {error.strerror}; give a directory that holds packs")
    folders = [path / name for name in names if any((path / name / own).exists() for own in (MANIFEST, TENSORS))]
    packs = [summarise_pack(folder, verify=verify) for folder in folders]
    count = Counter(pack.id for pack in packs)
    return [
        dataclasses.replace(pack, problems=(*pack.problems, f"{pack.path}: another pack here has the id {pack.id}"))
        if count[pack.id] > 1
        else pack
        for pack in packs
    ]


def default_packs() -> Path:
    """Where packs are looked for if nothing is said: `packs` if that exists here, else the user's store."""
    here = Path("packs")
    return here if here.is_dir() else mbjax_home() / "packs"


def _shown_name(path: Path) -> str:
    """A directory's name as it may be printed."""
    return path.name if path.name.isprintable() else shown(path.name)


def _strangers(folder: PackFolder, manifest: Manifest) -> list[str]:
    known = {MANIFEST, SIGNATURE, *manifest.files}
    return [f"{folder.path}: {shown(name)} is not listed in {MANIFEST}" for name in folder.names() if name not in known]


def _missing(path: Path, manifest: Manifest) -> list[str]:
    return [f"{path / name}: is missing" for name in manifest.files if not (path / name).is_file()]


def _problems_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []
