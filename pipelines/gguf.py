"""`turbopress gguf`: a model as one GGUF file, for llama.cpp on processors and phones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.folders import model_folder
from pipelines.params import ParamsError
from pipelines.stage import fresh_file
from registry.manifest import MANIFEST, verify
from serving.llama_cpp import SUFFIX

if TYPE_CHECKING:
    from compress.gguf.write import Written


def gguf(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, a variant of params.yaml, or a folder; float or 4-bit")],
    to: Annotated[Path, typer.Option("--to", help="the new file, OUT.gguf")],
) -> None:
    """Write a model as a GGUF file for llama.cpp. Codes and scales of a 4-bit model go over as they are."""
    if to.suffix != SUFFIX:
        raise ParamsError(f"--to: {to}; choose a name that ends in {SUFFIX}")
    written = write_gguf(model, to)
    print(f"{to}: {model}, {to.stat().st_size:,} bytes; {told(written)}")


def write_gguf(model: str, to: Path) -> "Written":
    """The file stands whole at `to`, or nothing does; the model has the name in it that it was asked for by."""
    from compress.gguf.write import export  # noqa: PLC0415 - torch is slow to import

    folder = model_folder(model)
    digest = verify(folder).digest if (folder / MANIFEST).exists() else None
    with fresh_file(to) as fresh:
        return export(folder, fresh, Path(model).name, digest)


def told(written: "Written") -> str:
    """Bits, and what the format could not hold exactly."""
    parts = [f"{written.bits_per_linear_weight:.2f} bits a weight in the linears, {written.bits_per_weight:.2f} in all"]
    if written.rounded.groups:
        share = 100 * written.rounded.moved / written.rounded.groups
        worst = 100 * written.rounded.worst_steps
        parts.append(
            f"codes and scales exact, zeros of {share:.0f} % of groups moved by at most {worst:.2f} % of a step"
        )
    return "; ".join([*parts, *([written.note] if written.note else [])])
