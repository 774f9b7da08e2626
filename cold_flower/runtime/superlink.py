"""A SuperLink of our own: started in an empty directory, stopped with all that it started."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from cold_flower.errors import RunError
from cold_flower.runtime.processes import end_with_parent, stop, tool, undisturbed

CONNECTION = "cold-flower"
START_SECONDS = 60


@contextmanager
def superlink(
    empty: Path, environment: Mapping[str, str], log: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a SuperLink on a free port; stop it with all that it started.

    Args:
        empty: a folder where it and its children work, and nobody else.
        environment: theirs; ``FLWR_HOME`` in it is made, and knows the SuperLink as `CONNECTION`.
        log: an open file for what they print.
    """
    port = _free_port()
    command = [tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port)]  # state in memory: it ends with the run
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    )
    process = None
    try:
        process = subprocess.Popen(
            command,
            cwd=empty,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        _wait_healthy(process, port)
        yield process
    finally:
        with undisturbed():
            stop(process, empty)


def _wait_healthy(process: "subprocess.Popen[bytes]", port: int) -> None:
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunError(f"flower-superlink ended at once with code {process.returncode}")
        with suppress(OSError):
            local.open(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        time.sleep(0.1)
    raise RunError(f"flower-superlink did not come up within {START_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
