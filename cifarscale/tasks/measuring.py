"""What the tasks that train nothing have in common."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from cifarscale.runs.files import write_json_atomically
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.base import Task

if TYPE_CHECKING:
    import torch

    from cifarscale.distributed.cpu_pool import CpuPool
    from cifarscale.distributed.group import Group
    from cifarscale.tracking.sink import Sink
    from cifarscale.training.signals import StopRequest


class MeasuringTask(Task):
    """Computes a result on all ranks, from what has been trained or lies there."""

    @abstractmethod
    def measure(
        self, recipe: Any, options: RunOptions, group: "Group", pool: "CpuPool", device: "torch.device"
    ) -> dict[str, Any]:
        """The result, the same on every rank."""

    def run(
        self,
        recipe: Any,
        folder: RunFolder,
        options: RunOptions,
        sink: "Sink | None" = None,
        stop: "StopRequest | None" = None,
    ) -> dict[str, Any]:
        from cifarscale.distributed.cpu_pool import CpuPool
        from cifarscale.distributed.device import arithmetic, pick_device
        from cifarscale.distributed.group import process_group
        from cifarscale.distributed.ranks import ranks_from_environment

        ranks = ranks_from_environment()
        device = pick_device(options.device, ranks.local_rank)
        folder.error_file.unlink(missing_ok=True)
        with process_group(ranks, device, timeouts=options.timeouts) as group, arithmetic(device):
            try:
                result = self.measure(recipe, options, group, CpuPool(one_core_each=device.type == "cpu"), device)
                if ranks.is_first:
                    write_json_atomically(folder.result_file, result)
            except Exception as error:
                if ranks.is_first:
                    folder.note_error(error)
                raise
            group.wait()
        return result
