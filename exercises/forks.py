"""Runs jobs in folders that each hold the project, every job in a fork of one process that has loaded the libraries.

Reads a list of jobs as JSON from its standard input: a folder, a command (pytest, or a module of the folder), its
arguments, and a file for what it says. Writes a line with the exit code of each. Loading torch and transformers takes
longer than most of these jobs; the project itself is loaded in each fork, from its own folder. Run with `python -I`.
"""

import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from exercises.child import LIMITS, limit

SECONDS = 120  # of processor time for a job
CRASHED = 70  # exit code of a command that ended with an error of its own


def main() -> None:
    jobs = json.load(sys.stdin)
    limit(LIMITS | {"RLIMIT_CPU": SECONDS})
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent.parent)]
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    for job in jobs:
        if not (process := os.fork()):
            os._exit(run(**job))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def run(folder: str, command: str, arguments: list[str], log: str, seconds: int = 0) -> int:
    """The exit code of a command in a folder, which is ended after so many seconds by the clock; 0 is never."""
    signal.alarm(seconds)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        if command == "pytest":
            import pytest

            return int(pytest.main([*arguments, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", folder]))
        sys.argv = [f"{command}.py", *arguments]
        runpy.run_path(f"{command}.py", run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception:
        traceback.print_exc()
        return CRASHED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
