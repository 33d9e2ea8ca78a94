"""A run goes on when there is no server, or it is lost, or wandb's process dies or freezes. Each ends within the limit
of Tracked, whatever hangs; what it cost is printed."""

import shlex
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from track import KEY, Tracked, options
from wandb_server import WandbServer

pytestmark = pytest.mark.slow
NO_SERVER = ("silent", "broken", "strict", "closed")
LOST = ("gone", "hangs")
BLOWS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> dict[str, Future]:
    """All of it at once, since most of it is waiting. With no server the time limit is the YAML's own.
    "plain" shows what a tracker costs on this machine at this moment when there is no trouble."""
    folder = tmp_path_factory.mktemp("trouble")
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        servers = {name: stack.enter_context(WandbServer()) for name in LOST}
        for name, trouble in {"silent": "silent", "broken": 500, "strict": 401}.items():
            servers[name] = stack.enter_context(WandbServer(trouble))
        unused = stack.enter_context(socket.socket())
        unused.bind(("127.0.0.1", 0))
        urls = {name: server.url for name, server in servers.items()}
        urls["closed"] = f"http://127.0.0.1:{unused.getsockname()[1]}"

        def go(name: str, run: dict, at_pause: Callable | None = None, **changes: object) -> Future:
            env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": urls[name]} if name in urls else {}
            return pool.submit(
                Tracked, folder / name, options("wandb", **changes), run, at_pause=at_pause, **env
            )

        jobs = {"plain": go("plain", {"steps": [1, 2], "tables": True}, mode="offline")}
        for name, blow in BLOWS.items():
            jobs[name] = go(name, {"steps": [1, 2, 3], "kill": int(blow)}, mode="offline")
        for name in NO_SERVER:
            jobs[name] = go(name, {"steps": [1, 2], "tables": True, "wait": True})
        for name, how in {"gone": servers["gone"].leave, "hangs": servers["hangs"].hang}.items():
            run = {"steps": [1, 2, 3, 4], "tables": name == "hangs", "pause": True}
            jobs[name] = go(name, run, at_pause=how, timeout_seconds=2)
    return jobs


@pytest.mark.parametrize("name", NO_SERVER)
def test_without_a_server_the_run_is_logged_offline(tracked, name):
    found = tracked[name].result()
    run = found.runs[0]
    plain = tracked["plain"].result().cost
    print(f"{name}: start {run['start']:.1f}, end and exit {found.end_cost:.1f}; plain {plain:.1f} s")
    assert found.said[-2].startswith("wandb: offline, since http://127.0.0.1:")
    assert all("; upload it with: wandb sync " in line for line in found.said[-2:])
    assert all("\n" not in line for line in found.said) and found.errors == ""
    assert [record["step"]["num"] for record in found.records("history")] == [1, 2]
    assert [record["exit_code"] for record in found.records("exit")] == [0]
    assert not list(found.folder.glob("wandb/run-*"))  # nothing of the attempt is left


def hurt(tracked: dict[str, Future], name: str) -> Tracked:
    """A run that met with trouble on its way; it ended without a word on stderr, and what that cost is printed."""
    found, plain = tracked[name].result(), tracked["plain"].result().end_cost
    slowest = found.runs[0]["slowest"]
    print(f"{name}: end and exit {found.end_cost:.1f}; plain {plain:.1f} s; calls {slowest:.4f} s")
    assert found.errors == ""
    return found


@pytest.mark.parametrize("name", LOST)
def test_a_server_lost_in_mid_run_does_not_hold_the_run_up(tracked, name):
    found = hurt(tracked, name)
    assert len(found.said) == 2 and "wandb sync --include-online " in found.said[1]
    assert Path(shlex.split(found.said[1])[-1]).is_dir()
    assert found.records("history")[0]["step"]["num"] == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds wandb's process in /proc")
@pytest.mark.parametrize("name", BLOWS)
def test_wandbs_process_may_die_or_freeze_and_the_run_ends_well(tracked, name):
    found = hurt(tracked, name)
    assert len(found.said) > 1 and all(line.startswith("wandb: ") and "\n" not in line for line in found.said)
