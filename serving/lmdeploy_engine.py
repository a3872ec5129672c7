"""A folder in this process by LMDeploy, where it is installed and there is a GPU."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.engine import Message, Sampling
from serving.errors import ServingError
from serving.profile import EngineProfile, backend, fitted, require_lmdeploy_s
from serving.server import require_right_way_up
from serving.shape import read_shape


class LmdeployEngine:
    """LMDeploy's pipeline under our two verbs."""

    def __init__(self, folder: Path, pipe: Any) -> None:
        self.name, self._pipe = folder.name, pipe

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The assistant's answer, in pieces."""
        return self._stream(list(messages), sampling, marked=False)

    def complete(self, text: str, sampling: Sampling) -> Iterator[str]:
        """How the text goes on."""
        return self._stream(text, sampling, marked=True)

    def _stream(self, prompt: Any, sampling: Sampling, *, marked: bool) -> Iterator[str]:
        from lmdeploy import GenerationConfig  # noqa: PLC0415 - an extra

        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_p=sampling.top_p,
            random_seed=sampling.seed,
        )
        for piece in self._pipe.stream_infer(prompt, gen_config=config, do_preprocess=not marked):
            yield piece.text


def load(folder: Path, profile: EngineProfile) -> LmdeployEngine:
    """The folder's model in LMDeploy, told what the profile says."""
    try:
        from lmdeploy import PytorchEngineConfig, TurbomindEngineConfig, pipeline  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ServingError(f"lmdeploy: cannot be imported ({error}); pip install 'turbopress[lmdeploy]'") from error
    shape = read_shape(folder)
    require_lmdeploy_s(shape, str(folder))
    require_right_way_up(sys.executable, shape)
    told = {key: value for key, value in fitted(profile, shape, str(folder)).model_dump().items() if value is not None}
    if backend(shape) == "pytorch":
        return LmdeployEngine(folder, pipeline(str(folder), backend_config=PytorchEngineConfig(**told)))
    return LmdeployEngine(folder, pipeline(str(folder), backend_config=TurbomindEngineConfig(**told)))
