"""`cifarscale profiles`: where and how jobs run."""

from pathlib import Path

import click

from cifarscale.errors import short_path, typed

profile_argument = click.argument("profile", metavar="[NAME]", required=False)


@click.group(short_help="List, show, copy and check cluster profiles.")
def profiles() -> None:
    """List, show, copy and check the cluster profiles that jobs can be submitted with.

    A NAME may also be a .toml file; without one it is $CIFARSCALE_PROFILE, or gpu.
    """


@profiles.command("list")
def list_profiles() -> None:
    """All profiles that can be named here."""
    from rich.console import Console
    from rich.table import Column, Table

    from cifarscale.slurm.profile import load_profile, profile_files

    table = Table("name", "launcher", Column("description", overflow="fold"), Column("file", overflow="fold"))
    for name, path in profile_files().items():
        profile = load_profile(str(path))
        table.add_row(name, profile.launcher, profile.description, short_path(path))
    Console(markup=False).print(table)


@profiles.command()
@profile_argument
def show(profile: str | None) -> None:
    """Show a profile with every default, as TOML."""
    from cifarscale.slurm.profile import load_profile, profile_toml

    click.echo(profile_toml(load_profile(profile)), nl=False)


@profiles.command()
@profile_argument
def check(profile: str | None) -> None:
    """Ask SLURM whether it would take jobs of a profile. Queues nothing."""
    from cifarscale.checks.profile_check import check_profile
    from cifarscale.cli.findings import show_findings
    from cifarscale.errors import ClusterError
    from cifarscale.slurm.profile import load_profile

    chosen = load_profile(profile)
    if failed := show_findings(check_profile(chosen)):
        raise ClusterError(f"profile {chosen.name}: {failed} {'check' if failed == 1 else 'checks'} failed")


@profiles.command()
@click.argument("profile", metavar="NAME")
@click.argument("target", type=click.Path(path_type=Path), required=False)
def copy(profile: str, target: Path | None) -> None:
    """Copy a profile to TARGET (default: slurm/profiles/NAME.toml here), to change it."""
    from cifarscale.config.lookup import copy_file
    from cifarscale.slurm.profile import find_profile

    target = target or Path("slurm/profiles") / f"{Path(profile).stem}.toml"
    copy_file(find_profile(profile), target)
    click.echo(f"{target}; next: cifarscale profiles check {typed(target.stem)}")
