"""Stage `fetch`: the base model, wherever it comes from, as an artifact in the stock layout."""

from pathlib import Path

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.source import resolve
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import new_artifact, repository_root, run


def main(out: Path) -> None:
    """Writes the base to OUT: same numbers, stock names, a tokenizer that needs no code."""
    root = repository_root()
    base = load(root).base
    source = resolve(base.source, base.revision, root)
    checkpoint = Checkpoint(source)
    if checkpoint.quantization:
        raise CompressError(f"{source}: is quantized already; start from its 16-bit original")
    origin = {"source": base.source} | ({"revision": base.revision} if base.revision else {})
    with new_artifact(out, kind="base", recipe={}, parents={}, data={}, seed=None, origin=origin) as folder:
        writer = ModelWriter(folder, checkpoint.config, "llama")
        for n in show(range(checkpoint.config.num_layers), "layer"):
            writer.layer(n, checkpoint.tensors(checkpoint.layer_names(n)))
        writer.outer(checkpoint.tensors(checkpoint.outer_names()))
        writer.close()
        write_tokenizer(source, folder)


if __name__ == "__main__":
    run(main)
