"""What a generator and a discriminator descend on. Logits are of being real; every loss is a mean over the samples."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cifarscale.tasks.gan.recipe import ObjectiveConfig

Objective = str
"""One of the names in `ObjectiveConfig`."""


def discriminator_loss(name: Objective, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, a scalar, from the logits (b,) of real and of as many generated images.

    "bce": -log D(x) - log(1 - D(G(z))), with D the sigmoid of the logit (Goodfellow et al. 2014, arXiv 1406.2661).
    "hinge": max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017, arXiv 1705.02894; Miyato et al. 2018, 1802.05957).
    "relativistic": -log sigmoid(real - fake), each with the one at its place (Jolicoeur-Martineau 2018, 1807.00734).
    """
    if name == "bce":
        return _cross_entropy(real, 1.0) + _cross_entropy(fake, 0.0)
    if name == "hinge":
        return (F.relu(1 - real) + F.relu(1 + fake)).mean()
    return F.softplus(fake - real).mean()


def generator_loss(name: Objective, real: Tensor | None, fake: Tensor) -> Tensor:
    """The generator's loss, a scalar, from the logits (b,) of generated images; of real ones too for "relativistic".

    "bce": -log D(G(z)), the non-saturating one. "hinge": -fake. "relativistic": -log sigmoid(fake - real).
    """
    if name == "bce":
        return _cross_entropy(fake, 1.0)
    if name == "hinge":
        return -fake.mean()
    assert real is not None
    return F.softplus(real - fake).mean()


def needs_real_images(config: ObjectiveConfig) -> bool:
    """Whether the generator's loss compares with real images."""
    return config.name == "relativistic"


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared norm of each sample's gradient, mean over the samples: R1 at real images, R2 at generated ones.

    Args:
        logits: (b,), each a function of its own image, but for what a minibatch layer adds of the others.
        images: (b, 3, H, W) that require a gradient.
    Source: Mescheder et al. 2018 (arXiv 1801.04406), section 4.1, without the weight gamma.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of logits with one target for all, in nats."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
