"""Fingerprints of weights, cheap enough to be compared over the ranks at each checkpoint."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def digest_of(networks: Mapping[str, nn.Module]) -> str:
    """Sixteen hexadecimal digits that change when any parameter or buffer does: one pass, and one transfer."""
    hashes = [
        torch.hash_tensor(torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(torch.int64)
        for network in networks.values()
        for tensor in network.state_dict().values()
        if tensor.numel()
    ]
    values = torch.stack(hashes).cpu().numpy().tobytes() if hashes else b""
    return hashlib.sha256(values).hexdigest()[:16]
