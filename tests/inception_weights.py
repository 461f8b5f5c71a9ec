"""Inception's weights for tests and benchmarks: seeded random ones of the right shapes."""

from pathlib import Path
from unittest import mock

import torch
from torch import nn


def random_inception_weights(path: Path, seed: int = 0) -> None:
    """Saves random weights as pytorch-fid's file would hold them, through which activations keep their size."""
    from pytorch_fid import inception

    state: dict[str, torch.Tensor] = {}

    def fill(network: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        state.update(network.state_dict())

    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value=None),
        mock.patch.object(nn.Module, "load_state_dict", lambda network, _: fill(network)),
    ):
        inception.fid_inception_v3()
    torch.save(state, path)
