"""A stored model through lm-eval's own program, on tasks whose descriptions and data are local files.

    python -m pipelines.tasks FOLDER TASKS NAME… LIMIT      # prints one JSON value; LIMIT 0 takes every document

TASKS is a folder of lm-eval's YAML files; none of the tasks that come with it is known here, because those fetch their
data from a hub. The model is ours in memory, its quantized weights unpacked, so no code of the folder is run.
"""

import json
import os
import sys
from pathlib import Path

from compress.errors import CompressError
from pipelines.stage import device, one_line_errors


def main(folder: Path, tasks: Path, names: list[str], limit: int) -> None:
    """Prints every metric of every task, with its standard error where lm-eval gives one."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        from lm_eval import simple_evaluate  # noqa: PLC0415 - an extra
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise CompressError(f"{error.name} is not installed; run: pip install 'turbopress[tasks]'") from error
    from compress.evaluate.generation import Speaker  # noqa: PLC0415 - torch is slow to import

    manager = TaskManager(include_path=[str(tasks)], include_defaults=False)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        known = ", ".join(sorted(manager.all_tasks)) or "none"
        raise CompressError(f"{tasks}: has no task {', '.join(unknown)} (it has: {known})")
    speaker = Speaker.load(folder, device())
    model = HFLM(pretrained=speaker.model, tokenizer=speaker.tokenizer, batch_size=8)
    done = simple_evaluate(model=model, tasks=list(names), task_manager=manager, limit=limit or None, bootstrap_iters=0)
    found = {name: _numbers(values) for name, values in done["results"].items()}
    print(json.dumps({name: {"documents": done["n-samples"][name]["effective"], **found[name]} for name in found}))


def _numbers(values: dict[str, object]) -> dict[str, float]:
    """Metrics under their plain names: lm-eval writes `acc,none`."""
    numbers = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    with one_line_errors():
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:-1], int(sys.argv[-1]))
