"""Whether anything proves which server is at the other end of a connection; a warning if not."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

from etl.databases.url import Url

LOCAL = (ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("::ffff:127.0.0.0/104"))
"""Addresses of this machine: what goes there passes no network."""

_log = logging.getLogger("etl")
_warned: set[str] = set()  # one warning for each database of a process, not for each connection


def warn_where_unverified(transport: Any, url: Url, remedy: str) -> None:
    """Log a warning, once for each database, where nothing proves who is at the other end.

    Args:
        remedy: What to put into its URL.
    """
    why = unverified(transport)
    if why is not None and url.name not in _warned:
        _warned.add(url.name)
        _log.warning("%s: %s. Put %s into its URL", url.name, why, remedy)


def unverified(transport: Any) -> str | None:
    """What a connection over a network lacks; None where it is verified, or local.

    Args:
        transport: An asyncio transport; None where the driver shows none.
    """
    if transport is None:
        return None
    peer: Any = transport.get_extra_info("peername")
    if type(peer) is not tuple:
        return None  # a socket in the file system
    host = str(transport.get_extra_info("peername")[0])
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if any(address in network for network in LOCAL if network.version == address.version):
            return None
    context: ssl.SSLContext | None = transport.get_extra_info("sslcontext")
    if context is None:
        return (
            "the connection is not encrypted, and whoever is between can read and change the rows"
        )
    if context.verify_mode is not ssl.CERT_REQUIRED:
        return "the connection is encrypted, but the server's certificate is not checked"
    return None
