"""Fingerprints of weights: cheap enough to be compared over the ranks at each checkpoint, by `verify` at each step."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def digest_of(networks: Mapping[str, nn.Module]) -> str:
    """Sixteen hexadecimal digits that change when any parameter or buffer does: one pass, and one transfer."""
    values = torch.tensor(list(digests_of(networks).values()), dtype=torch.int64)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def digests_of(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """A number for each parameter and buffer, by `NETWORK.NAME`, that changes when any of its elements does."""
    tensors = {
        f"{network}.{name}": tensor
        for network, module in networks.items()
        for name, tensor in module.state_dict().items()
        if tensor.numel()
    }
    hashes = [
        torch.hash_tensor(torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(torch.int64)
        for tensor in tensors.values()
    ]
    return dict(zip(tensors, torch.stack(hashes).tolist() if hashes else [], strict=True))
