"""Puts the demo base together: InternLM2's tensor names and config.json, the training's figures, the model card.

    python examples/demo/make_base.py TRAINED examples/demo/base

TRAINED is the folder that train.py leaves; BASE holds the tokenizer already. Runs on any machine.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from card import card
from safetensors.torch import load_file
from torch import Tensor

from compress.checkpoint.config import INTERNLM2_CLASS, ModelConfig, parse_config
from compress.checkpoint.write import ModelWriter


def config_of(shape: dict[str, Any], place: Path) -> ModelConfig:
    """Returns the configuration with every key that InternLM2's published config.json has, but `auto_map`."""
    published = {
        "architectures": [INTERNLM2_CLASS],
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "internlm2",
        "pad_token_id": 2,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    return parse_config({**published, **shape}, str(place))


def write_weights(base: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Writes the tensors, given under the stock names, under InternLM2's."""
    writer = ModelWriter(base, config, "internlm2")
    for number in range(config.num_layers):
        prefix = f"model.layers.{number}."
        writer.layer(number, {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    writer.outer({name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.")})
    writer.close()


def main(
    trained: Annotated[Path, typer.Argument(help="folder that train.py left")],
    base: Annotated[Path, typer.Argument(help="folder that make_tokenizer.py left")],
) -> None:
    """Completes `base`."""
    training = json.loads((trained / "training.json").read_text("utf8"))
    config = config_of(training["shape"], trained / "training.json")
    parts = [load_file(path) for path in sorted(trained.glob("trained-*.safetensors"))]
    write_weights(base, config, {name: tensor for part in parts for name, tensor in part.items()})
    shutil.copyfile(trained / "training.json", base / "training.json")
    (base / "README.md").write_text(card(training), "utf8")
    print(f"{base}: {training['num_parameters']:,} parameters")


if __name__ == "__main__":
    typer.run(main)
