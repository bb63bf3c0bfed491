"""Reads `pack.json` without trust: every field by name, type and bounds, nothing passed over."""

import re

from mbjax.core.lora import TARGETS
from mbjax.io.model_config_json import MAX_FF, MAX_LAYERS, MAX_WIDTH, read_config
from mbjax.io.pack_manifest import (
    CARD,
    DTYPES,
    FILE_NAME,
    FORMAT,
    ID,
    MANIFEST,
    MAX_FILES,
    MAX_OTHER_FILE,
    MAX_RANK,
    MAX_ROUTE_TENSORS,
    MAX_ROUTE_VALUES,
    MAX_TENSOR_FILE,
    QUANTISATIONS,
    SCORES,
    SIGNATURE,
    TENSORS,
    VERSION,
    BaseBinding,
    Compatible,
    DataSource,
    ExpertPart,
    FileEntry,
    LoraPart,
    Manifest,
    Route,
    is_route_name,
)
from mbjax.io.pack_scores import read_score
from mbjax.io.strict_json import Fields, parse_object, shown


def read_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in a `pack.json` read into memory.

    Raises InputError of one line naming `where` and the field: another format version, a field that is missing,
    unknown, of another type or out of bounds, a file name that could leave the directory, a digest that does not
    match (so that no setting can be changed unnoticed).
    """
    document = parse_object(data, where)
    fields = Fields(document, where)
    if type(document.get("format")) is not int or document["format"] != FORMAT:
        fields.refuse("format", f"must be {FORMAT}; for another version, update mbjax")
    fields.take("format")
    stated = fields.digest("digest")
    manifest = _read(fields)
    fields.done()
    if stated != manifest.digest:
        fields.refuse("digest", "does not match the other fields: the manifest was changed or damaged")
    return manifest


def _read(fields: Fields) -> Manifest:
    names = {
        "id": fields.text("id", 64, ID, "use small letters, digits and hyphens"),
        "name": fields.text("name", 100),
        "version": fields.text("version", 100, VERSION, "use a semantic version such as 1.0.0"),
        "licence": fields.text("licence", 200),
        "created_by": fields.text("created_by", 500),
    }
    base = _read_base(fields.object("base"))
    parts = fields.object("parts")
    expert = _read_expert(parts.object("expert")) if parts.has("expert") else None
    lora = _read_lora(parts.object("lora"), base.config.n_layers) if parts.has("lora") else None
    parts.done()
    if expert is None and lora is None:
        fields.refuse("parts", "names neither an expert nor a lora part")
    dtype, quantisation = _one_of(fields, "dtype", DTYPES), _one_of(fields, "quantisation", QUANTISATIONS)
    if quantisation != "none" and dtype != "float32":
        fields.refuse("dtype", f"must be float32 where quantisation is {quantisation}")
    return Manifest(
        **names,
        base=base,
        expert=expert,
        lora=lora,
        compatible=tuple(_read_compatible(entry) for entry in fields.objects("compatible", 64)),
        route=_read_route(fields.object("route")) if fields.has("route") else None,
        dtype=dtype,
        quantisation=quantisation,
        data=tuple(_read_source(source) for source in fields.objects("data", 256)),
        requires=_read_requires(fields),
        files=_read_files(fields.object("files")),
    )


def _one_of(fields: Fields, key: str, known: tuple[str, ...]) -> str:
    value = fields.text(key, 40)
    if value not in known:
        fields.refuse(key, f"must be one of: {', '.join(known)}; for another, update mbjax")
    return value


def _read_base(fields: Fields) -> BaseBinding:
    template = fields.digest("template_digest") if fields.has("template_digest") else None
    base = BaseBinding(
        name=fields.text("name", 200),
        digest=fields.digest("digest"),
        tokenizer_digest=fields.digest("tokenizer_digest"),
        template_digest=template,
        config=read_config(fields.object("config")),
    )
    fields.done()
    return base


def _read_expert(fields: Fields) -> ExpertPart:
    expert = ExpertPart(
        n_layers=fields.integer("n_layers", 1, MAX_LAYERS),
        d_model=fields.integer("d_model", 1, MAX_WIDTH),
        d_ff=fields.integer("d_ff", 1, MAX_FF),
    )
    fields.done()
    return expert


def _read_lora(fields: Fields, n_layers: int) -> LoraPart:
    rank, targets = fields.integer("rank", 1, MAX_RANK), fields.texts("targets", len(TARGETS), 10)
    layers = fields.integers("layers", n_layers, 0, n_layers - 1)
    if set(targets) - set(TARGETS):
        fields.refuse("targets", f"must be among {', '.join(TARGETS)}")
    if list(layers) != sorted(set(layers)):
        fields.refuse("layers", "must rise")
    table = fields.object("ranks")
    ranks = {key: table.integer(key, 0, MAX_RANK) for key in table.keys(n_layers * len(TARGETS))}
    maps = {f"{layer}.{target}" for layer in range(n_layers) for target in TARGETS}
    if set(ranks) - maps:
        fields.refuse("ranks", "must have keys LAYER.TARGET, such as 3.q")
    part = LoraPart(rank, targets, layers, ranks)
    if not any(part.rank_of(layer, target) for layer in range(n_layers) for target in TARGETS):
        fields.refuse("ranks", "leave no map touched")
    fields.done()
    return part


def _read_compatible(fields: Fields) -> Compatible:
    entry = Compatible(
        name=fields.text("name", 200),
        digest=fields.digest("digest"),
        tokenizer_digest=fields.digest("tokenizer_digest"),
        scores=tuple(read_score(score) for score in fields.objects("scores", 100)),
    )
    if not entry.scores:
        fields.refuse("scores", "must hold at least one score measured on that base")
    fields.done()
    return entry


def _read_route(fields: Fields) -> Route:
    threshold, background = fields.number("threshold", 0.0, 1.0), fields.digest("background_digest")
    table = fields.object("tensors")
    tensors = {key: table.integers(key, 3, 1, MAX_ROUTE_VALUES) for key in table.keys(MAX_ROUTE_TENSORS)}
    for name in tensors:
        if not is_route_name(name):
            fields.refuse("tensors", "must have names such as route.vectors")
    fields.done()
    return Route(tensors, threshold, background)


def _read_source(fields: Fields) -> DataSource:
    source = DataSource(fields.text("name", 200), fields.text("licence", 200), fields.text("origin", 500))
    fields.done()
    return source


def _read_requires(fields: Fields) -> tuple[str, ...]:
    requires = fields.texts("requires", 32, 60)
    if requires:
        fields.refuse("requires", f"{requires[0]}, which this mbjax does not know; update mbjax")
    return requires


def _read_files(table: Fields) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for name in table.keys(MAX_FILES):
        if not re.fullmatch(FILE_NAME, name) or name.lower() in (MANIFEST, SIGNATURE):
            table.refuse(shown(name), "is no name for a pack's file: use letters, digits, dots and hyphens")
        if name.lower() in (other.lower() for other in files):
            table.refuse(shown(name), "differs from another name by case only")
        entry = table.object(name)
        most = MAX_TENSOR_FILE if name == TENSORS else MAX_OTHER_FILE
        files[name] = FileEntry(entry.digest("sha256"), entry.integer("bytes", 0, most))
        entry.done()
    for name in (TENSORS, SCORES, CARD):
        if name not in files:
            table.refuse(name, "is missing")
    return files
