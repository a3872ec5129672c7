"""Several processes, a GPU each, that quantize one model: each has its share of the windows and of the weights' rows.

`torchrun --nproc-per-node 2 -m pipelines.quantize …` starts them. Statistics are summed over all; outputs are rounded
apart, since no row of a weight needs another; what was rounded is put together again everywhere.
"""

import os
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed


@dataclass(frozen=True)
class Workers:
    """This process among all of them; one alone needs no other."""

    rank: int = 0
    count: int = 1

    @classmethod
    def started(cls) -> "Workers":
        """The processes that torchrun or accelerate launch has started, or this one alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), count)

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.count > 1:
            distributed.barrier()

    def share(self, values: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "share ..."]:
        """The rows that are this process's."""
        return values.tensor_split(self.count)[self.rank]

    def sum_(self, values: Tensor) -> Tensor:
        """Every process's values added up, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def total(self, number: int) -> int:
        """Every process's number added up."""
        return int(self.sum_(torch.tensor(number, device=self._device)).item()) if self.count > 1 else number

    def gather(self, share: Shaped[Tensor, "share ..."], rows: int) -> Shaped[Tensor, "rows ..."]:
        """The inverse of `share`: all processes' rows, in order."""
        if self.count == 1:
            return share
        sizes = [part.shape[0] for part in torch.empty(rows, device="meta").tensor_split(self.count)]
        most = torch.zeros(max(sizes), *share.shape[1:], dtype=share.dtype, device=share.device)
        most[: len(share)] = share
        every = torch.empty(self.count, *most.shape, dtype=share.dtype, device=share.device)
        distributed.all_gather_into_tensor(every.flatten(0, 1), most)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @property
    def _device(self) -> str:
        return "cuda" if distributed.get_backend() == "nccl" else "cpu"


ALONE = Workers()
