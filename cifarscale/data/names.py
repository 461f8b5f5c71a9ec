"""The data sets that can be built by name. Importing this loads nothing."""

DATASETS = ("cifar100", "synthetic")
