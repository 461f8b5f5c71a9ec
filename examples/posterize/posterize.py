"""An augmentation and an evaluation metric in one file: posterized images, and the expected calibration error."""

import torch
from torch import Tensor

import cifarscale as cs

BINS = 15


@cs.register_augmentation("posterize")
def posterize(images: Tensor, draws: cs.randomness.Draws, bits: int = 4, share: float = 0.5) -> Tensor:
    """Leaves a share of the images, (N, 3, H, W) from 0 to 1, only so many bits a channel."""
    highest = 2**bits - 1
    chosen = draws.uniform("chosen") < share  # (N,)
    return torch.where(chosen.view(-1, 1, 1, 1), (images * highest).round() / highest, images)


def expected_gap(samples: Tensor) -> Tensor:
    """From confidence and hit of all samples, (n, 2), to the mean distance of the two over bins of confidence.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    confidence, hit = samples.unbind(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=samples.dtype).index_add(0, bins, hit - confidence)
    return gaps.abs().sum() / len(samples)


@cs.register_metric("calibration_error", direction="min", reduce=expected_gap)
def confidence_and_hit(logits: Tensor, labels: Tensor) -> Tensor:
    """(b, 2): the probability of the predicted class, and whether that is right."""
    confidence, prediction = logits.softmax(1).max(1)
    return torch.stack([confidence, (prediction == labels).float()], 1)


@cs.register_metric("margin", direction="max")
def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(b,): how far the label's logit lies above the largest other one; its mean over the samples is reported."""
    of_label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    return of_label - others
