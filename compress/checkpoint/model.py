"""The stock transformers class of a configuration, empty, so that weights can be put in whole or layer by layer."""

from copy import deepcopy

from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from compress.checkpoint.config import ModelConfig

# Ours to say at load time, not the checkpoint's: weights arrive unpacked, in the caller's type.
_NOT_FOR_THE_CLASS = ("quantization_config", "torch_dtype", "architectures", "model_type")


def build_model(config: ModelConfig) -> PreTrainedModel:
    """A model whose parameters lie on the meta device; its RoPE tables are real."""
    fields = {key: value for key, value in config.fields.items() if key not in _NOT_FOR_THE_CLASS}
    stock = AutoConfig.for_model(config.family, **deepcopy(fields))  # transformers adds keys to nested values
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(stock, attn_implementation="sdpa")
    model.tie_weights()  # emptying made two parameters of a shared one
    return model.eval()
