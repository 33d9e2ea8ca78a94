"""One process at a time in a run's folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tid.lock import RunLock, RunLocked

HOLD = """
import sys, time
from pathlib import Path
from tid.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_by_name_until_the_first_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, text=True, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked) as refusal, RunLock(tmp_path):
            pass
        assert f"process {holder.pid} on {os.uname().nodename}" in str(refusal.value)
        assert str(tmp_path) in str(refusal.value) and len(str(refusal.value).splitlines()) == 2
    finally:
        holder.kill()
        holder.wait()
    with RunLock(tmp_path), pytest.raises(RunLocked, match=f"process {os.getpid()} "), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):  # free again
        pass
