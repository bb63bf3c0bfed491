"""The tokenizer of a Hugging Face directory: tokenizer.json or tokenizer.model, and the settings around it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbjax.errors import InputError
from mbjax.io.template import ChatTemplate
from mbjax.io.tokenizer import Tokenizer, read_core, tokenizer_errors

if TYPE_CHECKING:
    import tokenizers


def read_hf_tokenizer(directory: Path) -> Tokenizer:
    """Reads tokenizer.json, else tokenizer.model, with tokenizer_config.json, generation_config.json and config.json.

    Raises InputError naming the file if the tokenizer is missing, damaged or of an unsupported kind.
    """
    settings = {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}
    model = _json(directory / "config.json")
    with tokenizer_errors(directory):
        core = _core(directory, settings)
        bos, eos = _content(settings.get("bos_token")), _content(settings.get("eos_token"))
        bos_id = core.token_to_id(bos) if bos else _first_id(model.get("bos_token_id"))
        ends = _ids(_json(directory / "generation_config.json").get("eos_token_id")) or _ids(model.get("eos_token_id"))
        named = core.token_to_id(eos) if eos else None
        eos_ids = {*ends, *([] if named is None else [named])}
        add_bos = settings.get("add_bos_token")
        if not isinstance(add_bos, bool):
            add_bos = _starts_with_bos(core, bos_id, directory)
        eos = eos or next((core.id_to_token(i) or "" for i in sorted(eos_ids)), "")
        if bos is None and bos_id is not None:
            bos = core.id_to_token(bos_id)
        template = _template(directory, settings, bos or "", eos)
        return Tokenizer(core, bos_id=bos_id, add_bos=add_bos, eos_ids=eos_ids, template=template)


def _core(directory: Path, settings: dict[str, Any]) -> "tokenizers.Tokenizer":
    if (directory / "tokenizer.json").is_file():
        core = read_core(directory / "tokenizer.json")
    elif (directory / "tokenizer.model").is_file():
        from mbjax.io.spm_tokenizer import read_tokenizer_model

        core = read_tokenizer_model(directory / "tokenizer.model", legacy=settings.get("legacy", True))
    else:
        raise InputError(f"{directory}: no tokenizer.json and no tokenizer.model; copy one of them there")
    _add_tokens(core, settings.get("added_tokens_decoder") or {}, directory)
    return core


def _add_tokens(core: "tokenizers.Tokenizer", added: dict[str, Any], directory: Path) -> None:
    """Tokens that only tokenizer_config.json knows, at the ids it gives them."""
    from tokenizers import AddedToken

    for key, spec in sorted(added.items(), key=lambda item: int(item[0])):
        content, special = spec["content"], bool(spec.get("special"))
        known = core.get_added_tokens_decoder().get(int(key))
        if core.token_to_id(content) != int(key) or known is None or (special and not known.special):
            core.add_tokens([AddedToken(content, special=special, normalized=False)])
        if core.token_to_id(content) != int(key):
            raise InputError(
                f"{directory / 'tokenizer_config.json'}: token '{content}' should have id {key}"
                f" but the tokenizer gives it {core.token_to_id(content)}"
            )


def _starts_with_bos(core: "tokenizers.Tokenizer", bos_id: int | None, directory: Path) -> bool:
    if not (directory / "tokenizer.json").is_file():
        return True  # SentencePiece models of this family are trained with it
    return core.encode("", add_special_tokens=True).ids[:1] == [bos_id]


def _template(directory: Path, settings: dict[str, Any], bos: str, eos: str) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        source = path.read_bytes().decode()
    else:
        source = settings.get("chat_template") or _json(directory / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several by name; the one called default is for plain conversations
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return ChatTemplate(source, bos, eos) if source else None


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and i >= 0]


def _first_id(value: Any) -> int | None:
    return next(iter(_ids(value)), None)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__} where an object is expected")
    return value
