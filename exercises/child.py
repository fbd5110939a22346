"""The process in which a student's code runs: the copy alone on the path, limited time and memory, no way back here.

Reads one job as JSON from its standard input and writes a line of JSON for each exercise. Run it as a file with
`python -I`: it knows nothing of the project, and an import of the solution from the checkout or from an installed
package is refused. What the student's code prints goes to the standard error. Left out: protection against malice.
"""

import json
import linecache
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

SECONDS, BYTES = 120, 4 * 2**30  # of processor time, for all exercises; of memory for data
INSTALLED = "arpo_rl"  # the project, once it is installed


def main() -> None:
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    limit()
    folder, checkout = Path(job["folder"]), Path(job["checkout"])
    forbid(checkout, folder)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    for exercise in job["exercises"]:
        print(json.dumps(answers(exercise, folder, job["seconds"])), file=out, flush=True)
    os._exit(0)  # whatever threads there are


def limit() -> None:
    for kind, most in (("RLIMIT_CPU", SECONDS), ("RLIMIT_DATA", BYTES), ("RLIMIT_CORE", 0)):
        resource.setrlimit(getattr(resource, kind), (most, most))


def forbid(checkout: Path, folder: Path) -> None:
    """Nothing of the checkout may be opened but the copy and what Python itself was installed with."""
    own = [str(path) + os.sep for path in (folder, sys.prefix, sys.base_prefix)]

    def hook(event: str, found: tuple) -> None:
        if event == "open" and isinstance(found[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(found[0]))
            inside = path.startswith(str(checkout) + os.sep) and not path.startswith(tuple(own))
            if inside or f"{os.sep}{INSTALLED}{os.sep}" in path:
                raise PermissionError(f"the exercises are to be solved in {folder}: {path} is not to be read here")

    sys.addaudithook(hook)


def answers(exercise: dict, folder: Path, seconds: float) -> dict:
    """The probe's answer to each case, or at the first error what and where; `seconds` of processor time for all."""
    space, found = {}, []
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        exec(compile(exercise["probe"], "probe", "exec"), space)
        for case in exercise["cases"]:
            found.append(space["probe"](case))
            json.dumps(found[-1])
    except NotImplementedError as error:
        return {"blank": str(error), "answers": found}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"[:500], "at": place(error, folder), "answers": found}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"answers": found}


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
