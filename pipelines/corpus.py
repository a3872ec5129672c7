"""Stage `corpus`: one of the data sections of `params.yaml` as token windows."""

from pathlib import Path

from tokenizers import Tokenizer

from compress.corpus import ChatTemplate, make_windows, read_documents, save_windows
from compress.errors import CompressError
from pipelines.params import load
from pipelines.stage import repository_root, run
from registry.manifest import fresh_folder


def main(key: str, model: Path, out: Path) -> None:
    """Writes the windows of data.KEY to OUT, encoded by the tokenizer and chat template of the folder MODEL."""
    root = repository_root()
    recipe = getattr(load(root).data, key)
    documents = read_documents(recipe, root, ChatTemplate.read(model))
    windows = make_windows(documents, read_tokenizer(model / "tokenizer.json"), recipe)
    with fresh_folder(out) as folder:
        save_windows(windows, folder)


def read_tokenizer(tokenizer: Path) -> Tokenizer:
    """The tokenizer that a model folder's tokenizer.json describes."""
    try:
        return Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises nothing narrower
        raise CompressError(f"{tokenizer}: no tokenizer ({error}); run `dvc repro fetch` again") from None


if __name__ == "__main__":
    run(main)
