"""Make the environments of the peers: ``python -m tests.benchmarks.peers``."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.peers import ENVIRONMENTS, FOLDER


def main() -> None:
    for name, packages in ENVIRONMENTS.items():
        home = FOLDER / name
        print(f"{name}: {', '.join(packages)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *packages], check=True)


if __name__ == "__main__":
    main()
