"""The same model in another layout: tensors are renamed, split and joined, no number changes."""

from pathlib import Path

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import LayoutName
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter


def write_in_layout(source: Path, layout: LayoutName, out: Path) -> None:
    """Writes the model of `source`, float or quantized, into the fresh folder `out`."""
    checkpoint = Checkpoint(source)
    writer = ModelWriter(out, checkpoint.config, layout)
    for n in range(checkpoint.config.num_layers):
        writer.layer(n, checkpoint.tensors(checkpoint.layer_names(n)))
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close(checkpoint.quantization)
    write_tokenizer(source, out)
