"""What a measurement was made with: device, versions, commit.

python tests/bench/hardware.py [--device cuda]
"""

import os
import platform
import subprocess

import click
import torch

from cifarscale.distributed.device import Hardware, device_name, pick_device


@click.command()
@click.option("--device", default="cuda")
def main(device: str) -> None:
    """Print a line for each."""
    picked = pick_device(device)
    found = Hardware.of(picked)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    rows = {
        "device": f"{device_name(picked)} ({found.kind})",
        "versions": f"Python {platform.python_version()}, {found.versions}, CUDA {torch.version.cuda}",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "commit": commit.stdout.strip() or "unknown",
    }
    for name, value in rows.items():
        click.echo(f"{name:10} {value}")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())


if __name__ == "__main__":
    main()
