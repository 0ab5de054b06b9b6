"""Database URLs: read once, checked once, and never shown with their password."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from etl.errors import ConfigError

_SCHEMES = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "mysql": "mysql",
    "mariadb": "mysql",
    "mysql+asyncmy": "mysql",
    "mariadb+asyncmy": "mysql",
}
_FORMS = (
    "postgresql://user:password@host:port/database, mysql://user:password@host:port/database,"
    " sqlite:///file.db or sqlite:////full/path.db"
)
_WITH_DRIVER = re.compile(r"[a-z][a-z0-9]*\+[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Url:
    """A database's address.

    Attributes:
        dialect: ``postgresql``, ``sqlite``, ``mysql``; or ``dialect+driver`` for any other of
            SQLAlchemy's.
        path: The database's name, or the file's path as given.
        options: The query string.
    """

    dialect: str
    path: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The address without user, password and options: for messages and plans."""
        if self.dialect == "sqlite":
            return f"sqlite:///{self.path}"
        port = f":{self.port}" if self.port else ""
        host = f"{self.host or ''}{port}"
        if self.hosts:
            host = ",".join(f"{name}:{port}" if port else name for name, port in self.hosts)
        return f"{self.dialect}://{host}/{self.path}"

    @property
    def hosts(self) -> tuple[tuple[str, str], ...]:
        """Where a PostgreSQL server may be, each host with its port ("" where none is named);
        of one host, nothing."""
        options = dict(self.options)
        names = options.get("host", "").split(",")
        if self.dialect != "postgresql" or len(names) < 2:
            return ()
        ports = options.get("port", "").split(",")
        return tuple(zip(names, ports * len(names) if len(ports) == 1 else ports, strict=True))

    def __str__(self) -> str:
        return self.name


def parse_url(text: str) -> Url:
    """Read a database URL, or ``env:NAME`` for one in an environment variable.

    Raises:
        ConfigError: Not a URL of a known database. The message never quotes the text, which
            may hold a password, unless a file is called so.
    """
    where = "this URL"
    if text.startswith("env:"):
        variable = text[4:]
        if not variable:
            raise ConfigError("env: needs the name of an environment variable, as in env:SHOP_URL")
        where = f"the URL in ${variable}"
        found = os.environ.get(variable)
        if not found:
            raise ConfigError(
                f"the environment variable {variable} is not set; it names a database"
            )
        text = found
    scheme, colon, _ = text.partition(":")
    dialect = _SCHEMES.get(scheme.lower()) if colon else None
    if dialect is None and colon and _WITH_DRIVER.fullmatch(scheme.lower()):
        dialect = scheme.lower()
    if dialect is None:
        if not colon and os.path.isdir(text):
            raise ConfigError(f"{text} is a folder, not a database; write {_FORMS}")
        if not colon and os.path.isfile(text):
            raise ConfigError(
                f"{text} is a file, not a URL; where it is a SQLite database, write"
                f" sqlite:///{text}"
            )
        shown = f" ({scheme.lower()}:)" if colon and scheme.isascii() and len(scheme) < 24 else ""
        raise ConfigError(f"{where}{shown} does not name a known database; write {_FORMS}")
    if dialect == "sqlite":
        return _sqlite(text, where)
    url = _of_server(text, dialect)
    if url is None:
        raise ConfigError(
            f"{where} cannot be read; write {_FORMS}, with %40 for @, %2F for / and %23 for # in a"
            " password or a name"
        )
    if not url.path:
        raise ConfigError(f"{where} has no database name; write {_FORMS}")
    hosts, ports = (dict(url.options).get(name, "").count(",") + 1 for name in ("host", "port"))
    if ports not in {1, hosts}:
        raise ConfigError(
            f"{where} names {hosts} hosts and {ports} ports; give one port, or one for each host"
        )
    return url


def _of_server(text: str, dialect: str) -> Url | None:
    """The parts of a URL; None where it cannot be read, as an error would quote it."""
    try:
        parts = urlsplit(text)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        others: list[tuple[str, str]] = []
        if dialect == "postgresql" and "," in parts.netloc.rpartition("@")[2]:
            parts, others = _of_several_hosts(parts)
        port = parts.port
    except ValueError:
        return None
    if "@" in parts.path or "#" in text:
        # The rest of a password with a / or # in it would be taken for the database's name.
        return None
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    for name, value in options:
        if name == "user":
            user = user or value
        elif name == "password":
            password = password or value
        else:
            others.append((name, value))
    return Url(
        dialect=dialect,
        path=unquote(parts.path.lstrip("/")),
        host=unquote(parts.hostname) if parts.hostname else None,
        port=port,
        user=user,
        password=password,
        options=tuple(others),
    )


def _of_several_hosts(parts: SplitResult) -> tuple[SplitResult, list[tuple[str, str]]]:
    """A URL of several hosts as one without, and the options that name them, as libpq has it.

    Raises:
        ValueError: A port is no number.
    """
    user, at, hosts = parts.netloc.rpartition("@")
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(one.hostname for one in found):
        raise ValueError("a host without a name")
    ports = [str(one.port or "") for one in found]
    bare = [unquote(one.hostname or "") for one in found]
    names = [f"[{name}]" if ":" in name else name for name in bare]
    return parts._replace(netloc=user + at), [("host", ",".join(names)), ("port", ",".join(ports))]


def _sqlite(text: str, where: str) -> Url:
    rest = text.partition(":")[2]
    if not rest.startswith("///"):
        raise ConfigError(
            f"{where} needs three slashes before a file's path, four for a full path: {_FORMS}"
        )
    path, _, query = rest[3:].partition("?")
    if query:
        raise ConfigError(f"{where}: options after the SQLite file are not supported")
    path = unquote(path)
    if not path or path == ":memory:":
        raise ConfigError(f"{where} names no file; a database in memory ends with its connection")
    return Url(dialect="sqlite", path=path)
