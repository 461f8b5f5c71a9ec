"""`cifarscale doctor`."""

from pathlib import Path

import click


@click.command(short_help="Check a cluster before you start a long job.")
@click.option("--profile", help="A cluster profile.  [default: $CIFARSCALE_PROFILE, or gpu]")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes to look at.  [default: 2 where there are two]")
@click.option("--data", help="The shards that jobs will read: a data set or a folder.  [default: cifar100]")
@click.option(
    "--time-limit-s",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Seconds to wait for the job to start, and for its ranks to find each other.",
)
def doctor(profile: str | None, nodes: int | None, data: str | None, time_limit_s: int) -> None:
    """Check a cluster as a job sees it, before you start a long one.

    Runs a job of a minute on some nodes, and says what is right, what is not, and what to do. With a profile whose
    launcher is local, such as `local`, its ranks are processes on this machine.
    """
    from cifarscale.checks.doctor import examine, folder_of_its_own
    from cifarscale.cli.findings import show_findings
    from cifarscale.errors import ClusterError
    from cifarscale.slurm.profile import load_profile

    chosen = load_profile(profile)
    with folder_of_its_own(chosen) as folder:
        failed = show_findings(examine(chosen, nodes, _shards(data), time_limit_s, folder))
        if failed:
            kept = f"; what the ranks left is in {folder}" if folder.exists() else ""
            raise ClusterError(f"{failed} {'check' if failed == 1 else 'checks'} failed{kept}")


def _shards(data: str | None) -> Path | None:
    """The folder of shards; None if none is named, and none lies in the usual place.

    Raises: DataError for a folder that holds no shards.
    """
    from cifarscale.data.build import folder_that_is_here
    from cifarscale.data.manifest import Manifest

    folder = folder_that_is_here(data or "cifar100")
    if folder is None and data is None:
        return None
    folder = folder or Path(data or "")
    Manifest.load(folder)
    return folder.resolve()
