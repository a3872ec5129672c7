"""Vision-language checkpoints: the language model is taken out, and given back after it was compressed.

InternVL keeps an InternLM2 (or Llama, or Qwen2) under `language_model.`, LLaVA in Hugging Face's form a Llama; whatever
else there is, the vision tower and the projector, is copied number for number. What lies between the two steps is an
ordinary model folder, so every stage works on it as on any other.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from compress.checkpoint import internvl
from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import INTERNLM2_CLASS, STOCK_CLASSES, read_config
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.load import unpacked
from compress.checkpoint.quantization import KEPT, kept_modules
from compress.checkpoint.tensor_files import TensorFiles
from compress.checkpoint.whole_file import write_whole
from compress.checkpoint.write import write_json
from compress.errors import CompressError

PREFIX = "language_model."
SECTIONS = {
    "InternVLChatModel": "llm_config",
    "InternVLForConditionalGeneration": "text_config",
    "LlavaForConditionalGeneration": "text_config",
    "LlavaNextForConditionalGeneration": "text_config",
}
CLIP, TOWER = "clip_vision_model", "vision_tower."
SEEING = ("vision_tower", "multi_modal_projector")
SHARD_BYTES = 2 * 2**30
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".py")  # and code, which nobody here runs or passes on
OURS = ("config.json", "model.safetensors.index.json", "manifest.json", "README.md")


@dataclass(frozen=True)
class VisionLanguage:
    """A vision-language folder: its configuration, and where its language model is described."""

    folder: Path
    config: Mapping[str, Any]
    section: str

    @classmethod
    def read(cls, folder: Path) -> "VisionLanguage":
        """The folder, if it is of a known architecture."""
        config = read_config(folder)
        named = (config.get("architectures") or ["none named"])[0]
        if named not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise CompressError(f"{folder}: architecture {named} is no vision-language model of ours; choose {known}")
        if SECTIONS[named] == "llm_config":
            internvl.require_ps_version(config, folder)
        return cls(folder, config, SECTIONS[named])

    @property
    def language_config(self) -> dict[str, Any]:
        """config.json of the language model alone; a stock class's keys that were left out have its defaults."""
        text = {key: value for key, value in self.config[self.section].items() if key != "quantization_config"}
        if quantization := self.config.get("quantization_config"):
            text["quantization_config"] = language_quantization(quantization)
        if text.get("architectures") == [INTERNLM2_CLASS]:
            return {"tie_word_embeddings": False} | text
        family = text.get("model_type", "llama")
        if family not in STOCK_CLASSES:
            known = ", ".join(["internlm2", *STOCK_CLASSES])
            raise CompressError(f"{self.folder}: language model {family} is not supported; choose one of {known}")
        stock = AutoConfig.for_model(family, **{k: v for k, v in text.items() if k != "model_type"}).to_dict()
        dtype = text.get("torch_dtype") or self.config.get("torch_dtype") or self.config.get("dtype") or "float32"
        return stock | {"architectures": [STOCK_CLASSES[family]], "torch_dtype": str(dtype)}

    @property
    def is_internvl(self) -> bool:
        """Whether the folder is of InternVL's own class, which no library has."""
        return self.section == "llm_config"

    @property
    def image_token_id(self) -> int:
        """The token that stands for a piece of an image in InternVL's prompts."""
        tokens = json.loads((self.folder / "tokenizer.json").read_text("utf8"))["added_tokens"]
        wanted = internvl.IMAGE_TOKENS["context_image_token"]
        for token in tokens:
            if token["content"] == wanted:
                return int(token["id"])
        raise CompressError(f"{self.folder / 'tokenizer.json'}: has no token {wanted}; fetch the tokenizer's files too")

    def seeing(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is not the language model's, under the names that the hub and LMDeploy have."""
        files = TensorFiles(self.folder)
        for name in files.names:
            if name.startswith(PREFIX):
                continue
            if self.is_internvl:
                yield from internvl.stock_tensors(files, name)
            else:
                yield self._on_the_hub(name), files.read(name)

    def _on_the_hub(self, name: str) -> str:
        """transformers 5 saves CLIP's tensors without a level of their names, and LMDeploy 0.18 looks for it."""
        short = self.config["vision_config"].get("model_type") == CLIP and not name.startswith(TOWER + "vision_model.")
        return name.replace(TOWER, TOWER + "vision_model.", 1) if short and name.startswith(TOWER) else name


def take(folder: Path, out: Path) -> None:
    """Writes the language model alone into the fresh folder `out`, an ordinary model of its architecture."""
    source = VisionLanguage.read(folder)
    files = TensorFiles(folder)
    names = [name for name in files.names if name.startswith(PREFIX)]
    if not names:
        raise CompressError(f"{folder}: no tensor begins with {PREFIX}; save it in the form that the hub has")
    _write_tensors(out, ((name.removeprefix(PREFIX), files.read(name)) for name in names))
    write_json(out / "config.json", source.language_config)
    _copy_the_rest(folder, out)
    Checkpoint(out)  # refuses what would not make a model


def give(folder: Path, language: Path, out: Path) -> None:
    """Writes the model of `folder` with the language model of `language` in it into the fresh folder `out`.

    The result is of a stock class: an InternVLChatModel becomes an InternVLForConditionalGeneration.
    """
    source, small = VisionLanguage.read(folder), Checkpoint(language)
    _require_same_width(source, small)
    with TemporaryDirectory(dir=out) as temporary:
        if small.layout != "llama":
            write_in_layout(language, "llama", Path(temporary))
            language = Path(temporary)
        part = TensorFiles(language)
        _write_tensors(out, chain(source.seeing(), ((PREFIX + name, part.read(name)) for name in part.names)))
        write_json(out / "config.json", _joined_config(source, read_config(language)))
        _copy_the_rest(folder, out)
        shutil.copytree(
            language, out, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if not _of_text(n)]
        )
    if source.is_internvl:
        _write_internvl_processor(source, out)


def _of_text(name: str) -> bool:
    """Whether a file belongs to the tokenizer, which was converted with the language model."""
    return name.startswith(("tokenizer", "chat_template", "special_tokens", "added_tokens", "generation_config"))


def _write_internvl_processor(source: VisionLanguage, out: Path) -> None:
    for name, content in internvl.processor_files(source.config).items():
        write_json(out / name, content)
    path = out / "tokenizer_config.json"
    told = json.loads(path.read_text("utf8")) | {"extra_special_tokens": internvl.IMAGE_TOKENS}
    if isinstance(told.get("chat_template"), str):
        told["chat_template"] = internvl.PARTS + told["chat_template"]
    write_json(path, told)
    if (template := out / "chat_template.jinja").exists():
        template.write_text(internvl.PARTS + template.read_text("utf8"), "utf8")


def _joined_config(source: VisionLanguage, language: Mapping[str, Any]) -> dict[str, Any]:
    """The whole model's configuration; how its linears are quantized is said at the top, and for which it is not."""
    text = {key: value for key, value in language.items() if key not in ("quantization_config", "auto_map")}
    text = _of_type(text, language.get("torch_dtype") or language.get("dtype") or "float16")
    if source.is_internvl:
        config = internvl.stock_config(source.config, text, source.image_token_id)
    else:
        config = {key: value for key, value in source.config.items() if key not in ("auto_map", "quantization_config")}
    # TurboMind reads pixels in the whole's type, and takes them only in the one that vision_config names.
    config["vision_config"] = _of_type(config["vision_config"], text["torch_dtype"])
    joined = _of_type(config, text["torch_dtype"]) | {"text_config": text}
    if quantization := language.get("quantization_config"):
        joined["quantization_config"] = whole_quantization(quantization)
        if not source.is_internvl:  # LMDeploy's PyTorch engine builds each part from its own section
            joined["text_config"] = text | {"quantization_config": joined["quantization_config"]}
    return joined


def _of_type(section: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A section of a configuration that says its type, by the name that every transformers reads, and no other."""
    return {key: value for key, value in section.items() if key not in ("dtype", "torch_dtype")} | {
        "torch_dtype": dtype
    }


def whole_quantization(said: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's `quantization_config` for the whole: what sees is kept too, names are those of the whole."""
    kept = ["lm_head", *(PREFIX + name for name in kept_modules(said))]
    if said["quant_method"] == "compressed-tensors":
        return {**said, "ignore": [*(rf"re:{part}\..*" for part in SEEING), *kept]}
    return {**said, "modules_to_not_convert": [*SEEING, *kept]}


def language_quantization(said: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `whole_quantization`."""
    kept = [name.removeprefix(PREFIX) for name in kept_modules(said) if name.startswith(PREFIX)]
    lists = {key: kept for key in KEPT if key in said}
    return {key: value for key, value in {**said, **lists}.items() if key not in lists or kept}


def _require_same_width(source: VisionLanguage, small: Checkpoint) -> None:
    """The projector writes into the language model's embeddings, so both must have the same width and vocabulary."""
    for key in ("hidden_size", "vocab_size"):
        wanted, found = source.language_config[key], small.config.fields[key]
        if wanted != found:
            raise CompressError(
                f"{small.folder}: {key} is {found}, but {source.folder} needs {wanted}; give the model taken from it"
            )


def _write_tensors(out: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes tensors as they are into shards and an index."""
    shard: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    number, size, total = 1, 0, 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            _save(out, number, shard)
            shard, number, size = {}, number + 1, 0
        shard[name], file_of[name] = tensor, _shard_name(number)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    _save(out, number, shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    write_json(out / "model.safetensors.index.json", index)


def _save(out: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    # A tied head would share its memory, which safetensors refuses: each tensor gets its own.
    write_whole(out / _shard_name(number), {name: t.clone() for name, t in tensors.items()}, {"format": "pt"})


def _shard_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def _copy_the_rest(source: Path, out: Path) -> None:
    """Tokenizer, chat template, image processor and licences: everything small that is neither weights nor code."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in WEIGHTS and path.name not in OURS and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    config = out / "tokenizer_config.json"
    if config.exists():
        told = json.loads(config.read_text("utf8"))
        if told.pop("auto_map", None) is not None:
            write_json(config, told)


def unpack(folder: Path, out: Path) -> None:
    """Writes the model of `folder` for the stock class to read: its 4-bit linears as the numbers they stand for."""
    files, config = TensorFiles(folder), dict(read_config(folder))
    for section in (config, config["text_config"]):
        section.pop("quantization_config", None)
    names: dict[str, list[str]] = {}  # by module, because a packed linear is three tensors
    for name in files.names:
        names.setdefault(name.rpartition(".")[0], []).append(name)
    bare = names.pop("", [])  # LLaVA-Next's image_newline is of no module
    modules = (unpacked({name: files.read(name) for name in together}) for together in names.values())
    tensors = chain.from_iterable(module.items() for module in modules)
    _write_tensors(out, chain(((name, files.read(name)) for name in bare), tensors))
    write_json(out / "config.json", config | {"torch_dtype": "float32"})
    _copy_the_rest(folder, out)
