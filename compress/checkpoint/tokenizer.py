"""A model folder's tokenizer, written so that every engine loads it and none asks to run code.

A published InternLM2 carries `tokenizer.model`, and the Python classes that read it: LMDeploy and transformers stop
and ask whether to run them. The same ids come out of a `tokenizer.json` under the generic class, which all engines
read (`sentencepiece_bpe.py` makes it). Four things around it go wrong in practice and are settled here:

- merges are strings ("a b"): pairs, as transformers 5 saves them, are unreadable before tokenizers 0.20;
- `tokenizer_class` is `PreTrainedTokenizerFast`: transformers 4 does not know the name that transformers 5 writes;
- the chat template lies in `tokenizer_config.json` *and* in `chat_template.jinja`, because some readers know only one
  of them;
- `<|im_end|>` is among the stop tokens of `generation_config.json`, or a served InternLM2 talks on past its answer.

Equal folders give equal bytes. A source's own tokenizer.json keeps its ids; where its configuration contradicts it,
that is an error. The pad token is the source's, or else its end token.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compress.checkpoint.sentencepiece_bpe import convert
from compress.checkpoint.special_tokens import (
    CHAT_END,
    Json,
    SpecialTokens,
    merge_pairs,
    read_json,
    read_special_tokens,
    token_ids,
    with_special_tokens,
)
from compress.errors import CompressError

CLASS = "PreTrainedTokenizerFast"
KEPT = ("model_max_length", "padding_side", "truncation_side")
INTERNLM2_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
INTERNLM2_DEFAULTS = {"add_bos_token": True, "add_eos_token": False, "padding_side": "left"}


def write_tokenizer(source: Path, out: Path) -> None:
    """Afterwards `out` holds the source's tokenizer, special tokens, chat template and stop tokens for any engine."""
    config = _read_config(source)
    tokens, tokenizer = _read_tokenizer(source, config)
    templates = _chat_templates(source, config)
    _write(out / "tokenizer.json", {**tokenizer, "model": _with_string_merges(tokenizer["model"])})
    _write(out / "tokenizer_config.json", _config(config, tokens, tokenizer["added_tokens"], templates))
    _write(out / "special_tokens_map.json", {**tokens.roles, **_extra(tokens)})
    _write(out / "generation_config.json", _generation(source, tokens, token_ids(tokenizer)))
    _write_templates(out, templates)
    _check_ids(out / "tokenizer.json", tokenizer["added_tokens"])


def _read_config(source: Path) -> Json:
    """Returns the tokenizer_config.json; of a tokenizer.model with what InternLM2's own class takes for granted."""
    config = read_json(source / "tokenizer_config.json")
    return config if (source / "tokenizer.json").is_file() else {**INTERNLM2_DEFAULTS, **config}


def _read_tokenizer(source: Path, config: Json) -> tuple[SpecialTokens, Json]:
    """Returns the special tokens and the tokenizer.json, kept or converted."""
    tokens = read_special_tokens(source)
    place = source / "tokenizer_config.json"
    if (source / "tokenizer.json").is_file():
        tokenizer = read_json(source / "tokenizer.json")
        _refuse_contradiction(tokenizer, tokens, config, place)
        tokens = _with_pad(tokens)
        return tokens, with_special_tokens(tokenizer, tokens, place)
    if not (source / "tokenizer.model").is_file():
        raise CompressError(f"{source}: neither tokenizer.json nor tokenizer.model; fetch the tokenizer's files too")
    converted = convert(source / "tokenizer.model")
    tokens = _with_pad(_with_default_roles(tokens, token_ids(converted)))
    named = with_special_tokens(converted, tokens, place)
    return tokens, {**named, "post_processor": _frame(tokens, token_ids(named), config, place)}


def _with_default_roles(tokens: SpecialTokens, ids: dict[str, int]) -> SpecialTokens:
    """Returns the tokens with InternLM2's names in the roles left open, where nobody renamed them."""
    free = {name for name, index in ids.items() if tokens.added.get(index, {"content": name})["content"] == name}
    defaults = {role: name for role, name in INTERNLM2_ROLES.items() if name in free}
    return SpecialTokens({**defaults, **tokens.roles}, tokens.extra, tokens.added)


def _with_pad(tokens: SpecialTokens) -> SpecialTokens:
    if "eos_token" not in tokens.roles:
        return tokens
    roles = {**tokens.roles, "pad_token": tokens.roles.get("pad_token", tokens.roles["eos_token"])}
    return SpecialTokens(roles, tokens.extra, tokens.added)


def _refuse_contradiction(tokenizer: Json, tokens: SpecialTokens, config: Json, place: Path) -> None:
    """Refuses flags for begin and end tokens that the tokenizer.json does not follow: readers disagree on who wins."""
    framed = _loaded(json.dumps(tokenizer), place.parent / "tokenizer.json").encode("").tokens
    for flag, role in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        name = tokens.roles.get(role)
        if flag in config and bool(config[flag]) != (name in framed):
            raise CompressError(
                f"{place}: {flag} is {config[flag]}, but tokenizer.json frames a text with {framed}; "
                f"remove {flag} to follow tokenizer.json, or save tokenizer.json again with it"
            )


def _frame(tokens: SpecialTokens, ids: dict[str, int], config: Json, place: Path) -> Json:
    """Returns the post-processor that puts the begin token before and the end token behind each text, as configured."""
    begin = _framing(tokens, config["add_bos_token"], "bos_token", place)
    end = _framing(tokens, config["add_eos_token"], "eos_token", place)

    def framed(text: str, type_id: int) -> list[Json]:
        special = [{"SpecialToken": {"id": name, "type_id": type_id}} for name in (*begin, *end)]
        return [*special[: len(begin)], {"Sequence": {"id": text, "type_id": type_id}}, *special[len(begin) :]]

    used = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (*begin, *end)}
    pair = framed("A", 0) + framed("B", 1)
    return {"type": "TemplateProcessing", "single": framed("A", 0), "pair": pair, "special_tokens": used}


def _framing(tokens: SpecialTokens, wanted: bool, role: str, place: Path) -> list[str]:
    if wanted and role not in tokens.roles:
        raise CompressError(f"{place}: a {role} is to be added but none is named; name {role} or set its flag to false")
    return [tokens.roles[role]] if wanted else []


def _with_string_merges(model: Json) -> Json:
    """Returns the model with merges as "left right"; as pairs where a string would be misread (spaces, a comment)."""
    pairs = merge_pairs(model)
    if (
        not pairs
        or any(" " in part for pair in pairs for part in pair)
        or any(p[0].startswith("#version") for p in pairs)
    ):
        return model
    return {**model, "merges": [" ".join(pair) for pair in pairs]}


def _config(config: Json, tokens: SpecialTokens, added: list[Json], templates: dict[str, str]) -> Json:
    """Returns a tokenizer_config.json with nothing in it that a reader could run, or that could change an id."""
    flags = {str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added}
    return {
        "tokenizer_class": CLASS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": config.get("model_input_names", ["input_ids", "attention_mask"]),
        **{key: config[key] for key in KEPT if key in config},
        **tokens.roles,
        **_extra(tokens),
        "added_tokens_decoder": flags,
        **({"chat_template": templates["default"]} if "default" in templates else {}),
    }


def _extra(tokens: SpecialTokens) -> Json:
    return {"additional_special_tokens": tokens.extra} if tokens.extra else {}


def _chat_templates(source: Path, config: Json) -> dict[str, str]:
    """Returns the source's chat templates by name; a file is believed before the configuration."""
    declared = config.get("chat_template") or []
    listed = [{"name": "default", "template": declared}] if isinstance(declared, str) else declared
    templates = {entry["name"]: entry["template"] for entry in listed}
    files = {path.stem: path for path in sorted((source / "additional_chat_templates").glob("*.jinja"))}
    if (source / "chat_template.jinja").is_file():
        files["default"] = source / "chat_template.jinja"
    return {**templates, **{name: path.read_text("utf8") for name, path in files.items()}}


def _write_templates(out: Path, templates: dict[str, str]) -> None:
    for name, template in templates.items():
        path = out / "chat_template.jinja" if name == "default" else out / "additional_chat_templates" / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, "utf8", newline="\n")


def _generation(source: Path, tokens: SpecialTokens, ids: dict[str, int]) -> Json:
    """Returns the source's generation_config.json, with the ids of the roles it leaves out and the chat's end token."""
    roles = {
        f"{role}_id": ids[name]
        for role, name in tokens.roles.items()
        if role in ("bos_token", "eos_token", "pad_token")
    }
    generation = {**roles, **read_json(source / "generation_config.json")}
    ends: Any = generation.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if CHAT_END in ids and ids[CHAT_END] not in listed:
        generation["eos_token_id"] = [*listed, ids[CHAT_END]]
    return generation


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf8", newline="\n")


def _loaded(text: str, place: Path) -> Any:
    """Returns the tokenizer that the library makes of a tokenizer.json."""
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise CompressError(f"{place}: {error}; save it again with the tokenizers library") from None


def _check_ids(path: Path, added: list[Json]) -> None:
    """Refuses a tokenizer.json whose added tokens the library would number in another way."""
    loaded = _loaded(path.read_text("utf8"), path)
    for entry in added:
        found = loaded.token_to_id(entry["content"])
        if found != entry["id"]:
            raise CompressError(
                f"{path}: {entry['content']!r} loads as id {found}, not {entry['id']}; report this tokenizer"
            )
