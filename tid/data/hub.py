"""Documents streamed from the Hugging Face hub.

The reading is done by a process of its own (``tid.data.hub_reader``). A stream of ``datasets`` that is left
before its end, as ours always is, may have threads of pyarrow still reading, and when Python ends meanwhile
they abort it ("PyGILState_Release: thread state must be current", datasets 5.2 with pyarrow 26). And the
training process is spared the threads and the memory of datasets, pyarrow and pandas.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tid.data.errors import DataError

ROOT = Path(__file__).parents[2]


def stream_texts(facts: dict, **wanted) -> Iterator[str]:
    """The texts that ``hub_reader.read(**wanted)`` finds, in order.

    ``facts`` receives ``commit`` (what the revision stood for), ``endpoint`` and ``empty_documents`` (their
    number, passed over). Raises DataError, see there.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "tid.data.hub_reader", json.dumps(wanted)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "USE_TORCH": "0"},  # or datasets imports torch, for a second
    )
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise DataError(message["error"])
            if "text" in message:
                yield message["text"]
            else:
                facts |= message
        if process.wait() != 0 or "empty_documents" not in facts:
            raise DataError(
                f"the process that reads {wanted['repo']} ended early, exit code {process.returncode}; what "
                "it printed says why. Nothing was kept. Run the same command again"
            )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
