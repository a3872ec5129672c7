"""A folder in this process by LMDeploy, where it is installed and there is a GPU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.engine import Ending, Message, Pieces, Sampling
from serving.errors import ServingError
from serving.profile import EngineProfile, backend, fitted, require_lmdeploy_s
from serving.server import require_right_way_up
from serving.shape import read_shape


class LmdeployEngine:
    """LMDeploy's pipeline under our two verbs."""

    def __init__(self, folder: Path, pipe: Any) -> None:
        self.name, self._pipe = folder.name, pipe

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Pieces:
        """The assistant's answer, in pieces."""
        return self._stream(list(messages), sampling, marked=False)

    def complete(self, text: str, sampling: Sampling) -> Pieces:
        """How the text goes on."""
        return self._stream(text, sampling, marked=True)

    def _stream(self, prompt: Any, sampling: Sampling, *, marked: bool) -> Pieces:
        from lmdeploy import GenerationConfig  # noqa: PLC0415 - an extra

        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_p=sampling.top_p,
            random_seed=sampling.seed,
        )
        said, last = False, None
        for last in self._pipe.stream_infer(prompt, gen_config=config, do_preprocess=not marked):
            said = said or bool(last.text)
            if last.finish_reason != "error":
                yield last.text
        return self._ending(last, said)

    def _ending(self, last: Any, said: bool) -> Ending:
        """The end of an answer, which LMDeploy tells with its last piece; refused where there was none."""
        reason = last.finish_reason if last else "error"
        if reason in ("error", "abort"):
            why = getattr(last, "error_message", None) or reason
            raise ServingError(f"{self.name}: LMDeploy broke off ({why}); its log says more")
        if reason == "length" and not said:
            told = f"the prompt of {last.input_token_len} tokens leaves no room for an answer"
            raise ServingError(f"{self.name}: {told}; shorten it, or serve with a larger --session-len")
        return Ending("length" if reason == "length" else "stop", last.input_token_len, last.generate_token_len)


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
