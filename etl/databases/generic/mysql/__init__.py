"""MySQL and MariaDB."""

from etl.databases.generic.mysql.catalogue import Catalogue
from etl.databases.generic.mysql.making import Making
from etl.databases.generic.mysql.sessions import Sessions
from etl.databases.generic.mysql.writing import Writing


class MySQL(Sessions, Catalogue, Making, Writing):
    """See :class:`etl.databases.generic.dialect.Dialect`. Each part has a module of its own."""


__all__ = ["MySQL"]
