"""Which network addresses the desk may call of its own accord."""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network

# Ways to write an IPv4 address as an IPv6 one, which a router would take apart again.
_TRANSLATED = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"), ip_network("2002::/16"))


def parsed(host: str) -> IPv4Address | IPv6Address | None:
    """Return a host as an address, or None when it is a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def may_be_called(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    """Return whether an address is public, or in one of the networks that were allowed."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in networks):
        return True
    translated = any(address in network for network in _TRANSLATED)
    return address.is_global and not address.is_multicast and not translated
