"""TLS as libpq has it, in every mode, and a warning where nothing proves who the server is."""

from __future__ import annotations

import logging
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote

import pytest

from etl import ConfigError
from etl.databases import postgres, trust
from etl.databases.postgres.connect import connected
from etl.databases.url import parse_url
from etl.errors import EtlError
from tests.integration.tls_kit import (
    AUTHORITY,
    CLIENT,
    CLIENT_KEY,
    PASSPHRASE,
    STRANGER,
    Offer,
    tls_before,
)
from tests.postgres_server import Server


@pytest.fixture(autouse=True)
def _no_libpq_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No certificates of whoever runs the tests, and one warning for each test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(trust, "_warned", set())


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    """A database that nothing is written into: one for all tests."""
    return postgres_server.url


async def _works(url: str, refused: type[EtlError] = ConfigError) -> bool:
    try:
        async with connected(parse_url(url), "source", "test") as connection:
            return bool(await connection.fetchval("SELECT true"))
    except refused:
        return False


# offer of the server, sslmode, authority that is trusted, host -> how it ends
@pytest.mark.parametrize(
    ("offer", "mode", "trusted", "host", "ends"),
    [
        ("tls", "disable", None, "localhost", "plain"),
        ("tls", "allow", None, "localhost", "plain"),
        ("tls only", "allow", None, "localhost", "secure"),
        ("tls", None, None, "localhost", "secure"),
        ("tls", "prefer", None, "localhost", "secure"),
        ("no tls", "prefer", None, "localhost", "plain"),
        ("tls only", "disable", None, "localhost", "refused"),
        ("tls", "require", None, "localhost", "secure"),
        ("no tls", "require", None, "localhost", "refused"),
        # An authority that is named is asked, as libpq does for old times' sake.
        ("tls", "require", STRANGER, "localhost", "refused"),
        ("tls", "verify-ca", AUTHORITY, "localhost", "secure"),
        ("tls", "verify-ca", AUTHORITY, "127.0.0.1", "secure"),
        ("tls", "verify-ca", STRANGER, "localhost", "refused"),
        ("tls", "verify-ca", None, "localhost", "refused"),
        ("tls", "verify-full", AUTHORITY, "localhost", "secure"),
        ("tls", "verify-full", AUTHORITY, "127.0.0.1", "refused"),
        ("tls", "verify-full", STRANGER, "localhost", "refused"),
        ("no tls", "verify-full", AUTHORITY, "localhost", "refused"),
        ("tls", "verify-full", "system", "localhost", "refused"),
        ("tls", None, "system", "localhost", "refused"),
    ],
)
@pytest.mark.parametrize("by", ["url", "environment"])
async def test_sslmode_means_what_it_means_to_libpq(
    by: str,
    offer: Offer,
    mode: str | None,
    trusted: Path | str | None,
    host: str,
    ends: str,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"sslmode": mode, "sslrootcert": trusted}
    given = {name: value for name, value in options.items() if value is not None}
    async with tls_before(postgres_url, offer) as proxy:
        url = proxy.url(host, **(given if by == "url" else {}))
        if by == "environment":
            for name, value in given.items():
                monkeypatch.setenv(f"PG{name.upper()}", str(value))
        assert await _works(url) is (ends != "refused")
        seen = {"plain": proxy.plain, "secure": proxy.secure}
    if ends != "refused":
        assert seen == {"plain": int(ends == "plain"), "secure": int(ends == "secure")}
    else:
        assert not seen["plain"]


async def test_the_authorities_of_the_system_are_trusted_on_request(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(AUTHORITY))  # OpenSSL's own place for them
    async with tls_before(postgres_url, asks_client=True) as proxy:
        options = {"sslrootcert": "system", "sslcert": CLIENT, "sslkey": CLIENT_KEY}
        assert await _works(proxy.url(**options, sslpassword=quote(PASSPHRASE)))
        # A server that misses a certificate ends the connection without a word.
        assert not await _works(proxy.url(sslrootcert="system"), refused=EtlError)
        with pytest.raises(ConfigError, match="needs sslmode=verify-full, and it is 'require'"):
            async with connected(
                parse_url(proxy.url(sslrootcert="system", sslmode="require")), "source", "test"
            ):
                pass


async def test_a_client_shows_its_certificate(postgres_url: str) -> None:
    async with tls_before(postgres_url, asks_client=True) as proxy:
        options = {"sslmode": "require", "sslcert": CLIENT, "sslkey": CLIENT_KEY}
        assert await _works(proxy.url(**options, sslpassword=quote(PASSPHRASE)))
        assert not await _works(proxy.url(**options, sslpassword="wrong"))
        assert not await _works(proxy.url(sslmode="require"), refused=EtlError)


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
async def test_a_file_that_is_not_there_is_named(name: str, postgres_url: str) -> None:
    async with tls_before(postgres_url) as proxy:
        url = parse_url(proxy.url(sslmode="verify-full", **{name: "/no/such.crt"}))
        with pytest.raises(ConfigError, match=rf"{name} .* '/no/such\.crt', which is not there"):
            async with connected(url, "source", "test"):
                pass


@pytest.mark.parametrize(
    ("option", "variable"),
    [("channel_binding", "PGCHANNELBINDING"), ("require_auth", "PGREQUIREAUTH")],
)
async def test_what_the_driver_cannot_prove_is_not_passed_over(
    option: str, variable: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_before(postgres_url) as proxy:
        assert await _works(proxy.url(**{option: "prefer"}))
        assert not await _works(proxy.url(**{option: "require"}))
        monkeypatch.setenv(variable, "require")
        with pytest.raises(ConfigError, match=f"{variable} asks for 'require'"):
            async with connected(parse_url(proxy.url()), "source", "test"):
                pass
        assert proxy.secure == 1


@pytest.mark.parametrize(
    ("offer", "options", "warned"),
    [
        ("no tls", {}, "not encrypted"),
        ("tls", {}, "certificate is not checked"),
        ("tls", {"sslmode": "require"}, "certificate is not checked"),
        ("tls", {"sslmode": "verify-ca", "sslrootcert": AUTHORITY}, None),
    ],
)
async def test_a_remote_server_that_is_not_verified_is_warned_of(
    offer: Offer,
    options: dict[str, object],
    warned: str | None,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # 127.0.0.2 stands for another machine: a test may send nothing over a network.
    monkeypatch.setattr(trust, "LOCAL", (ip_network("127.0.0.1/32"),))
    async with tls_before(postgres_url, offer) as proxy:
        with caplog.at_level(logging.WARNING, "etl"):
            assert await _works(proxy.url("127.0.0.1", **options))
            assert not caplog.messages
            url = parse_url(proxy.url("127.0.0.2", **options))
            findings = {one.subject: one for one in await postgres.check(url)}
            assert await _works(proxy.url("127.0.0.2", **options))
    if warned is None:
        assert not caplog.messages
        assert (findings["TLS"].state, findings["TLS"].message) == ("ok", "on")
    else:
        (message,) = caplog.messages  # once, for two connections
        assert warned in message
        assert "127.0.0.2" in message
        assert "sslmode=verify-full" in message
        assert findings["TLS"].state == "warning"
