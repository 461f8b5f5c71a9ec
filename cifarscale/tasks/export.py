"""A trained network as a file that is read without this package: torch.export, safetensors or ONNX."""

import copy
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from cifarscale import __version__
from cifarscale.config.recipe import resolved
from cifarscale.errors import ConfigError, RunError, short_path
from cifarscale.runs.files import write_atomically
from cifarscale.tasks.load import load_trained
from cifarscale.tasks.trained import Pixels, Portable, Trained

_NEEDS = {".pt2": (), ".safetensors": ("safetensors",), ".onnx": ("onnx", "onnxscript", "onnxruntime")}
"""What each format needs beside torch."""
_TRACED, _CHECKED = 2, (1, 5, 3)
"""Samples that a network is traced with, and those that the file is then tried with: it takes any number."""
_TOLERANCE = 1e-3
"""Of an output, as a share of the largest: other kernels sum in another order. Pixels of 8 bits may differ by 1."""


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        takes, gives: shapes of the inputs and of the output, in words; empty where the weights alone are in the file.
        difference: the largest from the network's own output.
    """

    path: Path
    takes: str = ""
    gives: str = ""
    difference: float = 0.0


def export(run_dir: Path, to: Path, pixels: Pixels = "float", force: bool = False) -> Exported:
    """Writes what a run has trained to a file, and keeps it if it computes what the network does.

    Args:
        to: a .pt2 or .onnx file for the network with its normalisation, a .safetensors file for its weights.
        pixels: of images that go in or come out.
        force: whether to replace a file that is there.
    Raises: ConfigError for a name or a package that is missing; RunError or CheckpointError if nothing is trained yet,
        the network cannot be traced, or what is read from the file computes something else.
    """
    if to.suffix not in _NEEDS:
        raise ConfigError(f"cannot export to {to}: its name must end in one of {', '.join(_NEEDS)}")
    if to.exists() and not force:
        raise ConfigError(f"{to} exists already, and is left as it is. Name another file, or add --force")
    missing = [name for name in _NEEDS[to.suffix] if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(
            f"a {to.suffix} file needs {names}, which is not installed. Run: pip install 'cifarscale[export]'"
        )
    trained = load_trained(run_dir, torch.device("cpu"))
    if to.suffix == ".safetensors":
        return _export_weights(trained, to)
    portable = trained.portable(pixels)
    program = _traced(portable, run_dir, to)
    difference = 0.0

    def write(file: BinaryIO) -> None:
        nonlocal difference
        metadata = _metadata(trained) | {"pixels": pixels}
        with _one_line(f"{portable.module.__class__.__name__} of {short_path(run_dir)} cannot be written to {to}", to):
            _WRITERS[to.suffix](program, portable, metadata, file)
        file.flush()
        difference = _difference(portable, _READERS[to.suffix](Path(file.name)), to)

    write_atomically(to, write)
    takes = ", ".join(f"{name} {_form(tensor)}" for name, tensor in portable.inputs(_TRACED).items())
    return Exported(to, takes, f"{portable.output} {_form(_output(portable, _TRACED))}", difference)


def _traced(portable: Portable, run_dir: Path, to: Path) -> torch.export.ExportedProgram:
    """The network as a graph, for any number of samples."""
    inputs = portable.inputs(_TRACED)
    batch = torch.export.Dim("batch")
    with _one_line(f"torch.export cannot trace the network of {short_path(run_dir)}", to):
        return torch.export.export(
            portable.module, tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
        )


@contextmanager
def _one_line(what: str, to: Path) -> Iterator[None]:
    """Turns whatever goes wrong in torch's exporters into one clear line; they warn and log of what is theirs alone."""
    exporters = logging.getLogger("torch.onnx")
    level = exporters.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exporters.setLevel(logging.CRITICAL)
            yield
    except OSError:
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        lines = [line.strip() for line in str(root).splitlines() if line.strip()]
        raise RunError(
            f"{what}: {lines[0] if lines else type(root).__name__}. Its weights can be exported: "
            f"--to {to.with_suffix('.safetensors')}"
        ) from error
    finally:
        exporters.setLevel(level)


def _metadata(trained: Trained) -> dict[str, str]:
    """What one needs to know to use a network: values are JSON, or words."""
    train = trained.manifest.split("train")
    return {
        "cifarscale": __version__,
        "step": str(trained.step),
        "recipe": json.dumps(resolved(trained.recipe)),
        "classes": json.dumps(trained.manifest.fine_names),
        "image_shape": json.dumps(trained.manifest.spec.image_shape),
        "mean": json.dumps(train.mean),
        "std": json.dumps(train.std),
    }


def _write_pt2(
    program: torch.export.ExportedProgram, portable: Portable, metadata: Mapping[str, str], file: BinaryIO
) -> None:
    torch.export.save(program, file, extra_files=dict(metadata))


def _write_onnx(
    program: torch.export.ExportedProgram, portable: Portable, metadata: Mapping[str, str], file: BinaryIO
) -> None:
    names = list(portable.inputs(_TRACED))
    converted = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=[portable.output],
        dynamic_shapes=tuple({0: "batch"} for _ in names),
    )
    assert converted is not None
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # places in the source files of whoever exports
    converted.model.metadata_props.update(metadata)
    file.write(converted.model_proto.SerializeToString())


Reader = Callable[..., torch.Tensor]
"""A network as it is read from a file: from the inputs, by name, to the output."""


def _read_pt2(path: Path) -> Reader:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda **inputs: module(*inputs.values())


def _read_onnx(path: Path) -> Reader:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda **inputs: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    )


_WRITERS = {".pt2": _write_pt2, ".onnx": _write_onnx}
_READERS = {".pt2": _read_pt2, ".onnx": _read_onnx}


def _difference(portable: Portable, read: Reader, to: Path) -> float:
    """The largest difference of what is read from a file to the network itself, over several numbers of samples.

    Raises: RunError if it is not one of rounding.
    """
    largest = 0.0
    for count in _CHECKED:
        expected = _output(portable, count)
        with _one_line(f"{to} cannot be used with a batch of {count}", to), torch.inference_mode():
            output = read(**portable.inputs(count))
        is_alike = output.shape == expected.shape and output.dtype == expected.dtype
        difference = float(_wide(output).sub(_wide(expected)).abs().max()) if is_alike else float("inf")
        allowed = _TOLERANCE * float(_wide(expected).abs().max()) if expected.dtype != torch.uint8 else 1
        if not difference <= allowed:
            raise RunError(
                f"{to} is not kept: on a batch of {count} its output {_form(output)} differs by up to "
                f"{difference:.3g} from the network's {_form(expected)}. A network that draws random numbers in "
                "evaluation mode, or whose outputs depend on the rest of the batch, cannot be exported"
            )
        largest = max(largest, difference)
    return largest


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_complex() else tensor.double()


@torch.inference_mode()
def _output(portable: Portable, count: int) -> torch.Tensor:
    output: torch.Tensor = portable.module(*portable.inputs(count).values())
    return output


def _form(tensor: torch.Tensor) -> str:
    """The shape and kind of a tensor whose first dimension is the batch."""
    sizes = ", ".join(("N", *map(str, tensor.shape[1:])))
    return f"({sizes}{',' if tensor.dim() == 1 else ''}) {str(tensor.dtype).removeprefix('torch.')}"


def _export_weights(trained: Trained, to: Path) -> Exported:
    from safetensors.torch import load_model, save_model

    def write(file: BinaryIO) -> None:
        with tempfile.TemporaryDirectory() as scratch:  # safetensors makes files that nobody else may read
            save_model(trained.network, f"{scratch}/{to.name}", _metadata(trained))
            file.write(Path(scratch, to.name).read_bytes())
        file.flush()
        read = copy.deepcopy(trained.network)
        with torch.no_grad():
            for tensor in read.state_dict().values():
                tensor.zero_()
        load_model(read, file.name)
        if not _same_weights(read, trained.network):
            raise RunError(f"{to} is not kept: other weights are read from it than those of the run")

    write_atomically(to, write)
    return Exported(to)


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
