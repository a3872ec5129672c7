"""Stages `overlap`: how much of the evaluation text was seen in calibration and in distillation, or written by a model.

It stops nothing. Who measures on text that was calibrated on is told so here, in `turbopress compare`, and by
`dvc metrics diff`.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from tokenizers import Tokenizer

from compress.corpus import load_windows, overlap
from compress.corpus.overlap import RUN
from pipelines.corpus import read_tokenizer
from pipelines.stage import fresh_file, run

SEEN = ("calibration", "distillation")
RUN_TOKENS = "run_tokens"


def main(data: Path, tokenizer: Path, out: Path, texts: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Writes to OUT which of DATA's evaluation windows hold a run of tokens that those of TEXTS, or SEEN, hold."""
    evaluation, marks = load_windows(data / "evaluation"), special_tokens(read_tokenizer(tokenizer))
    values = {name: asdict(overlap(load_windows(data / name), evaluation, marks)) for name in texts or SEEN}
    with fresh_file(out) as file:
        file.write_text(json.dumps({RUN_TOKENS: RUN, **values}, indent=2) + "\n", "utf8")
    for line in _warnings(out):
        print(f"turbopress: {line}", file=sys.stderr)


def special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that mark text and are none."""
    return frozenset(n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def warnings(reports: Path, generated: Iterable[str] = ()) -> Iterator[str]:
    """A line for each text that holds some of the evaluation's; none where the stages have not run."""
    for name in ("overlap.json", *(f"{key}.overlap.json" for key in generated)):
        yield from _warnings(reports / name)


def _warnings(path: Path) -> Iterator[str]:
    found: dict[str, Any] = json.loads(path.read_text("utf8")) if path.is_file() else {}
    for name, about in found.items():
        if name != RUN_TOKENS and about["share"]:
            most = max(about["by_domain"], key=about["by_domain"].get)
            text = f"data.{name}" if name in SEEN else f"generate.{name}"
            yield (
                f"warning: {text}: {100 * about['share']:.1f} % of the evaluation windows share a run of "
                f"{found[RUN_TOKENS]} tokens with it ({100 * about['tokens_share']:.1f} % of the tokens, most in "
                f"{most}), so their losses may look too small; take other text for one of the two"
            )


if __name__ == "__main__":
    run(main)
