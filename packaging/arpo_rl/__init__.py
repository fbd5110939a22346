"""The project's commands as one installed package: `arpo train`, `arpo eval`, `arpo tools`, each with its flags.

The modules behind them have plain names (`data`, `eval`, `tools`), which other projects use as well. They lie in the
folder `code` of this package, and only the process of a command has that folder on its path.
"""

import runpy
import sys
from pathlib import Path

COMMANDS = "train", "eval", "tools"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: arpo {{{','.join(COMMANDS)}}} ...")
    command = sys.argv.pop(1)
    sys.path.insert(0, str(Path(__file__).parent / "code"))
    runpy.run_module(command, run_name="__main__", alter_sys=True)
