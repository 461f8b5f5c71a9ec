"""Whether W&B is to be told of a run, and over the network or not: decided without importing it."""

import importlib.util
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from cifarscale.config.recipe import TrackingConfig
from cifarscale.errors import ConfigError

CHECK_S = 3
"""How long the server may take to answer at all."""
_HOSTS = {"api.wandb.ai", "api.forge.coreweave.com"}
"""W&B's own servers, as they are called in logins."""
_OFFLINE, _DISABLED = ("offline", "dryrun"), ("disabled",)


def wandb_mode(tracking: TrackingConfig) -> str:
    """`online`, `offline` or `off`, by the recipe and the variables of W&B's own.

    Raises: ConfigError if W&B is asked for and not installed.
    """
    wanted, variable = tracking.wandb, os.environ.get("WANDB_MODE", "")
    if wanted == "auto":
        if not is_installed() or variable in _DISABLED or not (is_asked_for() or has_login()):
            return "off"
        wanted = "offline" if variable in _OFFLINE else "online"
    if wanted != "off" and not is_installed():
        raise ConfigError(
            f"tracking.wandb = {tracking.wandb!r} needs wandb, which is not installed. "
            "Run: pip install 'cifarscale[wandb]', or set tracking.wandb=off"
        )
    return wanted


def is_installed() -> bool:
    return importlib.util.find_spec("wandb") is not None


def is_asked_for() -> bool:
    """Whether the environment names a mode or a project of W&B."""
    return bool(os.environ.get("WANDB_MODE") or os.environ.get("WANDB_PROJECT"))


def has_login(address: str = "") -> bool:
    """Whether there is a key: in the environment, or where `wandb login` puts it.

    Args:
        address: of the server that it is for; W&B's own, or that of WANDB_BASE_URL, where it is empty.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlsplit(address or os.environ.get("WANDB_BASE_URL", "")).hostname
    return not logins.hosts.keys().isdisjoint({host} if host else _HOSTS)


def why_unreachable(address: str) -> str:
    """What keeps W&B's server at an address from being used now, in a few words; empty if nothing does."""
    import requests

    if not has_login(address):
        return f"there is no key for {address}: run wandb login, or set WANDB_API_KEY"
    try:
        with requests.get(address, timeout=CHECK_S, stream=True) as answer:
            return f"{address} answers with error {answer.status_code}" if answer.status_code >= 500 else ""
    except requests.RequestException as error:
        return f"{address} does not answer ({type(error).__name__})"
