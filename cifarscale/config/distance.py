"""How images are compared with real ones."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cifarscale.config.recipe import Section

FEATURES_PATTERN = r"^(none|inception|cnn:.+)$"


class DistanceConfig(Section):
    features: Annotated[str, Field(pattern=FEATURES_PATTERN)] = "inception"
    """`inception` for FID, or `cnn:RUN` for the features of a classifier that was trained here; `none` is off."""
    weights: str = ""
    """File with Inception's weights; where it is empty, pytorch-fid's are fetched once."""
    against: str = "train"
    """The real images: `train` or `test` of the data set, a folder of images, or statistics in a .npz file."""
    num_samples: PositiveInt = 10_000
    """Images to generate. The distance falls with their number: compare at the same one only."""
    batch_size: PositiveInt = 64
    """Images a core or a GPU computes features of at a time."""
    precision: Literal["exact", "fast"] = "exact"
    """`exact` is float32; `fast` is bfloat16, and its deviation is measured and shown beside the result."""
    kernel: bool = True
    """Also the kernel inception distance (Binkowski et al. 2018), with its standard error."""
    neighbours: NonNegativeInt = 3
    """Also precision and recall (Kynkaanniemi et al. 2019) by so many nearest neighbours; 0 is off."""
    classes: bool = True
    """Also the distance of each class, where the images have classes and there are enough of each."""
    num_kept: PositiveInt = 10_000
    """Images of each set, drawn at random, whose features are kept for the kernel distance, precision and recall."""
    allow_few_samples: bool = False
    """Goes on where there are fewer images than features, whose distance is then not to be compared with others."""
