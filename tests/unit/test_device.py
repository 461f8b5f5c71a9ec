"""Which GPU a rank takes, and what ranks find out about each other's."""

import pytest
import torch

from cifarscale.distributed.device import Hardware, check_gpus, check_unshared, mixture, pick_device
from cifarscale.errors import ConfigError


def sees(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


GPU_OF = {
    1: (0, 0, 0, 0, 0, 0, 0, 0),
    2: (0, 1, None, None, None, None, None, None),
    4: (0, 1, 2, 3, None, None, None, None),
    8: (0, 1, 2, 3, 4, 5, 6, 7),
}
"""By how many GPUs a task sees: what local ranks 0 to 7 take; None for an error."""


@pytest.mark.parametrize(
    ("visible", "local_rank", "index"),
    [(visible, rank, index) for visible, row in GPU_OF.items() for rank, index in enumerate(row)],
)
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_rank_takes_the_gpu_of_its_number_or_the_one_it_sees(
    visible: int, local_rank: int, index: int | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sees(monkeypatch, visible)
    if index is None:
        with pytest.raises(ConfigError, match=rf"needs a GPU, so {local_rank + 1} of them, .* sees {visible}\. Run "):
            pick_device(wanted, local_rank)
    else:
        assert pick_device(wanted, local_rank) == torch.device("cuda", index)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sees(monkeypatch, 0)
    assert pick_device("auto", 3) == pick_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"so 1 of them, and torch .* sees 0\. Run with --device cpu"):
        check_gpus(1)


def hardware(uuid: str = "", kind: str = "CPU with AVX2", versions: str = "torch 2") -> Hardware:
    return Hardware("n1", uuid, kind, versions)


def test_two_ranks_on_one_gpu_are_named() -> None:
    check_unshared([hardware(), hardware()])
    check_unshared([hardware("GPU-a"), hardware("GPU-b")])
    with pytest.raises(ConfigError, match=r"ranks 0 and 2 have the same GPU of n1 \(H100, GPU-a\)"):
        check_unshared([hardware("GPU-a", "H100"), hardware("GPU-b", "H100"), hardware("GPU-a", "H100")])


def test_a_mixture_of_devices_is_told() -> None:
    assert mixture([hardware()] * 4) == ""
    told = mixture([hardware("a", "H100"), hardware("b", "A100"), hardware("c", "H100")])
    assert "H100 (torch 2) on ranks 0, 2; A100 (torch 2) on rank 1" in told
    assert mixture([hardware(versions="torch 2"), hardware(versions="torch 3")])


def test_a_cpu_describes_itself() -> None:
    mine = Hardware.of(torch.device("cpu"))
    assert mine == Hardware(**mine.as_plain())
    assert (mine.uuid, mine.versions) == ("", f"torch {torch.__version__}")
