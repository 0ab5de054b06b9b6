"""What of a URL tells how a server is to be trusted, as libpq has it; a warning where it is not."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from etl.databases import trust
from etl.databases.url import Url
from etl.errors import ConfigError

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[Any]

Options: TypeAlias = Mapping[str, str]

# libpq's options that have the same meaning here. Others are refused by name, so that a
# misspelt sslmode does not turn TLS off.
_OPTIONS = frozenset(
    "host port sslmode sslrootcert sslcert sslkey sslpassword sslcrl ssl_min_protocol_version"
    " ssl_max_protocol_version sslnegotiation target_session_attrs options passfile".split()
)
# What the driver cannot do, by libpq's names. Asked for in earnest, it must not be passed over.
_LACKING = {
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcrldir": "PGSSLCRLDIR",
}
_NOT_ASKED = frozenset({"", "disable", "allow", "prefer"})
_FILES = {
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
}
_SYSTEM = "system"


def options_of(url: Url) -> Options:
    """The options in a URL that the driver is to have.

    Raises:
        ConfigError: One of them is unknown, names a file that is not there, or asks for what the
            driver cannot do; or a variable of libpq does.
    """
    options: dict[str, str] = {}
    for name, value in url.options:
        if name in _LACKING:
            _refuse_lacking(url, f"{name} in its URL", value)
        elif name not in _OPTIONS:
            raise ConfigError(
                f"{url.name}: the URL has an unknown option {name!r}; known are "
                + ", ".join(sorted(_OPTIONS))
            )
        else:
            options[name] = value
    for variable in _LACKING.values():
        _refuse_lacking(url, f"the environment variable {variable}", os.environ.get(variable, ""))
    for name, variable in _FILES.items():
        path = options.get(name) or os.environ.get(variable, "")
        if not path or (name == "sslrootcert" and path == _SYSTEM):
            continue
        if lack := _lack_of(path):
            raise ConfigError(
                f"{url.name}: {name} (or {variable}) names the file {path!r}, which {lack}"
            )
    return options


def _lack_of(path: str) -> str:
    """Why a file is of no use to this user; empty where it is."""
    try:
        if not Path(path).is_file():
            return "is not there"
    except PermissionError:  # of its folder
        return "cannot be read"
    return "" if os.access(path, os.R_OK) else "cannot be read"


def unused_password_file(url: Url) -> str:
    """Why a password file that was named gave no password; empty where it may have given one.

    The driver, like libpq, passes over a file that it cannot use, and the server then only says
    that the password is wrong.
    """
    path = dict(url.options).get("passfile") or os.environ.get("PGPASSFILE")
    if not path or url.password is not None or os.environ.get("PGPASSWORD"):
        return ""
    lack = _lack_of(path)
    if not lack and Path(path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        lack = "others may read as well, so that it is not used: make its mode 0600"
    return f" (PGPASSFILE, or passfile, names the file {path!r}, which {lack})" if lack else ""


def _refuse_lacking(url: Url, where: str, value: str) -> None:
    if value not in _NOT_ASKED:
        raise ConfigError(
            f"{url.name}: {where} asks for {value!r}, which the driver cannot do. Take it out;"
            " sslmode=verify-full proves that the server is the right one"
        )


def trust_of(url: Url, options: Options) -> ssl.SSLContext | None:
    """For ``sslrootcert=system``, which the driver lacks: trust whom this machine trusts.

    Raises:
        ConfigError: A weaker sslmode stands beside it: libpq refuses that too, because anybody can
            have a certificate for some name.
    """
    if (options.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")) != _SYSTEM:
        return None
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE") or "verify-full"
    if mode != "verify-full":
        raise ConfigError(
            f"{url.name}: sslrootcert=system needs sslmode=verify-full, and it is {mode!r}"
        )
    context = ssl.create_default_context()
    certificate = options.get("sslcert") or os.environ.get("PGSSLCERT")
    revoked = options.get("sslcrl") or os.environ.get("PGSSLCRL")
    try:
        if certificate:
            key = options.get("sslkey") or os.environ.get("PGSSLKEY")
            context.load_cert_chain(certificate, key, lambda: options.get("sslpassword", ""))
        if revoked:
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{url.name}: sslcert, sslkey or sslcrl cannot be used ({type(error).__name__})"
        ) from error
    for name, variable, bound in (
        ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", "minimum_version"),
        ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", "maximum_version"),
    ):
        version = options.get(name) or os.environ.get(variable)
        if version:
            try:
                setattr(context, bound, ssl.TLSVersion[version.replace(".", "_")])
            except KeyError:
                raise ConfigError(f"{url.name}: {name} is no version of TLS") from None
    return context


def warn_where_unverified(connection: Connection, url: Url) -> None:
    """Log a warning, once for each database, where nothing proves who is at the other end."""
    remedy = "sslmode=verify-full and sslrootcert= (system, or the file of your authority)"
    trust.warn_where_unverified(getattr(connection, "_transport", None), url, remedy)


def unverified(connection: Connection) -> str | None:
    """What a connection over a network lacks; None where it is verified, or local."""
    return trust.unverified(getattr(connection, "_transport", None))


def is_encrypted(connection: Connection) -> bool:
    """Whether a connection uses TLS."""
    transport: Any = getattr(connection, "_transport", None)
    return transport is not None and transport.get_extra_info("sslcontext") is not None
