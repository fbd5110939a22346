"""The process in which a student's code runs: the copy alone on the path, limited time and memory, no way back here.

Reads one job as JSON from its standard input and writes a line of JSON for each exercise. Run it as a file with
`python -I`: it knows nothing of the project, and an import of the solution from the checkout or from an installed
package is refused, and so is another process. What the student's code prints goes to a file. Left out: protection
against malice.
"""

import errno
import faulthandler
import json
import linecache
import math
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

LIMITS = {"RLIMIT_DATA": 4 * 2**30, "RLIMIT_CORE": 0}  # bytes
PRINTED = 16 * 2**20  # bytes of a file, such as the one with what was printed
GRACE = 3  # seconds of processor time for code that catches the error with which it is to be ended
INSTALLED = "arpo_rl"  # the project, once it is installed
PROCESSES = "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"


def main() -> None:
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(job["printed"], os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    limit(LIMITS | {"RLIMIT_FSIZE": PRINTED})
    faulthandler.register(signal.SIGXCPU, chain=True)  # says where, even in a loop that is not Python's
    folder, checkout = Path(job["folder"]), Path(job["checkout"])
    forbid(checkout, folder)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    for exercise in job["exercises"]:
        found = answers(exercise, folder, job["seconds"])
        with suppress(OSError):  # where it is full, or closed
            sys.stdout.flush()
            found["until"] = os.fstat(1).st_size  # of what was printed: what follows is the next exercise's
        print(job["token"], json.dumps(found), file=out, flush=True)
    os._exit(0)  # whatever threads there are


def limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def forbid(checkout: Path, folder: Path) -> None:
    """Nothing of the checkout may be opened but the copy and what Python itself was installed with."""
    own = [str(path) + os.sep for path in (folder, sys.prefix, sys.base_prefix)]

    def hook(event: str, found: tuple) -> None:
        if event in PROCESSES:
            raise PermissionError("the exercises need no other process, and none is started here")
        if event == "open" and isinstance(found[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(found[0]))
            inside = path.startswith(str(checkout) + os.sep) and not path.startswith(tuple(own))
            if inside or f"{os.sep}{INSTALLED}{os.sep}" in path:
                raise PermissionError(f"the exercises are to be solved in {folder}: {path} is not to be read here")

    sys.addaudithook(hook)


def answers(exercise: dict, folder: Path, seconds: float) -> dict:
    """The probe's answer to each case, or at the first error what and where; `seconds` of processor time for all."""
    space, found = {}, []
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limit({"RLIMIT_CPU": math.ceil(used + seconds) + GRACE})
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        exec(compile(exercise["probe"], "probe", "exec"), space)
        for case in exercise["cases"]:
            found.append(json.loads(json.dumps(space["probe"](case), default=plain)))
    except BaseException as error:
        return {"error": described(error), "at": place(error, folder), "answers": found}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"answers": found}


def plain(value: object) -> object:
    """A number that is a tensor or NumPy's is as good as Python's; of anything else its text is shown."""
    return value.tolist() if hasattr(value, "tolist") else f"{type(value).__name__}: {str(value)[:200]}"


def described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"OSError: your code prints or writes more than {PRINTED:,} bytes"
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return f"{type(error).__name__}, which cannot be printed"


def too_long(number, frame) -> None:
    raise TimeoutError("your code did not come to an end (an endless loop?)")


def place(error: BaseException, folder: Path) -> str:
    """The last line of the student's own files that the error passed, or the line that Python could not read."""
    if isinstance(error, SyntaxError) and error.filename:
        file = Path(error.filename)
        inside = file.relative_to(folder) if file.is_relative_to(folder) else file.name
        return f"{inside}:{error.lineno}: {(error.text or '').strip()}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(folder))]
    if not own:
        return ""
    line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
    return f"{Path(own[-1].filename).relative_to(folder)}:{own[-1].lineno}: {line}"


if __name__ == "__main__":
    main()
