"""Network interfaces of this machine; without torch, for what decides how torch starts."""

import fcntl
import socket
import struct

from cifarscale.errors import ConfigError

_SIOCGIFADDR = 0x8915


def interface_address(name: str) -> str:
    """The IPv4 address of a network interface of this machine.

    Raises: ConfigError if there is none of that name, or it has no address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            reply = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError(
                f"interface = {name!r} has no IPv4 address on {socket.gethostname()}; it has: {names}"
            ) from None
    return socket.inet_ntoa(reply[20:24])
