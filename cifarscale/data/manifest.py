"""The manifest of a folder of shards: what is in it, and the proof that it still is."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from cifarscale.config.lookup import bundled_folders
from cifarscale.config.registry import DataSpec
from cifarscale.errors import DataError, typed
from cifarscale.runs.files import write_json_atomically

MANIFEST_NAME = "manifest.json"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Entry):
    name: str
    num_samples: int
    sha256: str


class SplitEntry(_Entry):
    num_samples: int
    mean: tuple[float, float, float]
    """Mean of red, green and blue over the split, in units of full intensity (0 … 1)."""
    std: tuple[float, float, float]
    shards: tuple[ShardEntry, ...]


class Manifest(_Entry):
    """Everything that a reader needs to know before it opens a shard."""

    format: Literal[1] = 1
    dataset: str
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    """None for a set without superclasses."""
    coarse_of_fine: tuple[int, ...]
    """Superclass of each class."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width in pixels; not written for 32 x 32, as manifests were before there were other sizes."""
    drawn_by: str = ""
    """Sha256 of the file of one's own whose function gave the set; empty, and not written, for any other."""
    splits: dict[str, SplitEntry]

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was before there were keys with defaults: neither bytes nor fingerprints of older sets change."""
        defaults = {name: field.default for name, field in type(self).model_fields.items() if not field.is_required()}
        return {
            key: value
            for key, value in handler(self).items()
            if key == "format" or key not in defaults or getattr(self, key) != defaults[key]
        }

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when any sample, label, name or the cut into shards does."""
        values = self.model_dump(mode="json", exclude={"drawn_by"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def spec(self) -> DataSpec:
        """What a network is to know of the data."""
        return DataSpec(len(self.fine_names), (3, *self.image_size))

    def split(self, name: str) -> SplitEntry:
        """A split by name. Raises: DataError if there is none."""
        if name not in self.splits:
            raise DataError(f"{self.dataset} has no split {name!r}; there are: {', '.join(self.splits)}")
        return self.splits[name]

    def require(self, fingerprint: str, folder: Path) -> None:
        """Raises: DataError if the shards in `folder` are not those that a recipe was resolved with.

        Args:
            fingerprint: of these; empty for any.
        """
        if fingerprint and fingerprint != self.fingerprint:
            raise DataError(
                f"{folder} holds {self.dataset} with fingerprint {self.fingerprint}, and the recipe "
                f"was resolved with {fingerprint}. Name the folder it was trained on with --data, or clear "
                "data.fingerprint to start another run"
            )

    def save(self, folder: Path) -> None:
        write_json_atomically(folder / MANIFEST_NAME, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The manifest of a folder.

        Raises: DataError if there is none, or it cannot be read.
        """
        path = folder / MANIFEST_NAME
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{folder} is not a folder of shards: it has no {MANIFEST_NAME}. "
                f"Run: cifarscale shards build --data NAME --out {typed(folder)}, with cifar100 or synthetic for NAME"
            ) from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} is damaged or of another format ({str(error).splitlines()[0]}). "
                f"Build again: cifarscale shards build --out {typed(folder)} --force, with its --data"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def published_manifest(dataset: str) -> Manifest | None:
    """What `shards build` makes of a known set with its default number of shards, the same bytes on every machine."""
    for folder in bundled_folders("shards/manifests"):
        if (folder / f"{dataset}.json").is_file():
            return Manifest.model_validate_json((folder / f"{dataset}.json").read_text(encoding="utf-8"))
    return None
