"""What a run leaves on disk, and how it is read again: settings, metrics, trees, checkpoints, the best model, plots.

    run.json            settings, the size of the model they follow, versions
    metrics.jsonl       a line of numbers a step; step 0 is before training
    trees/, plots/      drawn trees, pictures of the metrics
    checkpoints/step_*  what a resumed run needs, and the model in Hugging Face form
    sft/                the model after its cold start
    results.json        every question's answers in the end, and the learning curve (`results.py`)
    table.txt           the final comparison; a run that has it is finished

and beside them the best model in Hugging Face form, so that a run's folder is itself a model. Nothing is ever seen
half written under its name. Left out: how a tree is drawn (`eval.py`), what the numbers mean (`train.py`).
"""

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from tqdm import tqdm

from data.pages import write_index, write_page
from data.plots import plot_run
from data.results import Row, write_results
from data.settings import Positive, Settings


@dataclass(frozen=True)
class RunConfig(Settings):
    output_dir: str = ""  # the run's folder; default runs/MODEL-ALGO-SEED
    overwrite: bool = False  # replace the run that is in output_dir
    resume: str = ""  # "auto": go on from the newest checkpoint in output_dir, if any; or a run's folder
    save_steps: Positive = 10  # write a checkpoint every so many steps
    save_total_limit: Positive = 2  # newest checkpoints that are kept; the best model is kept besides
    save_trees_steps: Positive = 10  # draw a tree every so many steps
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"  # log metrics there, too


def default_folder(model: str, data: str, stage: str, algo: str, seed: int, **_) -> str:
    source = "" if data in ("world", model) else "-" + re.sub(r"[^\w]+", "-", Path(data).name)[:40]
    return f"runs/{Path(model).name}{source}-{algo if stage == 'rl' else 'sft'}-{seed}"


def evaluation_folder(name: str, data: str, settings: dict[str, Any]) -> str:
    """One for each way of answering: equal settings have equal folders."""
    digest = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    source = re.sub(r"[^\w]+", "-", Path(data).name)[:40]
    return f"runs/eval-{name}-{source}-{digest}"


class Run:
    """A run's folder while it is written. With several processes only the first one writes."""

    def __init__(self, config: RunConfig, size: str, checkpoint: dict | None = None):
        self.folder, self.keep = Path(config.output_dir), config.save_total_limit
        self.best: float = checkpoint["best"] if checkpoint else -1.0  # dev accuracy of the best model
        self.best_step: int = checkpoint.get("best_step", 0) if checkpoint else 0
        self.writes = PartialState().is_main_process
        if self.writes:
            if config.overwrite and not checkpoint:  # not earlier: a start that fails must cost no run
                for old in ("table.txt", "index.html"):
                    (self.folder / old).unlink(missing_ok=True)
                for old in ("checkpoints", "trees", "plots"):
                    shutil.rmtree(self.folder / old, ignore_errors=True)
            (self.folder / "trees").mkdir(parents=True, exist_ok=True)
            write_about(self.folder, config, size)
            self.metrics = (self.folder / "metrics.jsonl").open("a" if checkpoint else "w", encoding="utf-8")
            if checkpoint:
                self.metrics.truncate(checkpoint["metrics_bytes"])  # steps after the checkpoint are done again
            self.also = open_logger(config)

    def log(self, row: dict[str, float]) -> None:
        if self.writes:
            rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
            self.metrics.write(json.dumps(rounded) + "\n")
            self.metrics.flush()
            self.also(rounded)

    def keep_tree(self, step: int, text: str, view: dict[str, Any]) -> None:
        """One of a step's trees, as text and as a page; the index leads to it."""
        if self.writes:
            (self.folder / "trees" / f"step_{step:04d}.txt").write_text(text, encoding="utf-8")
            self.keep_page(f"step_{step:04d}", view)
            write_index(self.folder)

    def keep_page(self, name: str, *views: dict[str, Any]) -> None:
        """A page of trees to one question."""
        page = {"trees": views, "index": "../index.html"}
        write_page(self.folder / "trees" / f"{name}.html", "tree", views[0]["question"], page)

    def keep_if_best(self, save: Callable[[Path], None], accuracy: float, step: int) -> None:
        """The best model by dev accuracy stands in the run's folder itself; without that of step 0 a run is refused."""
        if accuracy <= self.best:
            return
        if self.writes:
            if write_whole(self.folder / "best", save):
                for part in (self.folder / "best").iterdir():
                    place = self.folder / part.name
                    if place.is_dir():
                        shutil.rmtree(place)
                    part.replace(place)
                (self.folder / "best").rmdir()
            elif step == 0:
                raise OSError(f"the model could not be written to {self.folder}")
            else:
                return
        self.best, self.best_step = accuracy, step

    def checkpoint(self, save: Callable[[Path], None], state: dict) -> None:
        """Everything that a resumed run needs: the model and `state`. Older ones go once this one is complete."""
        if not self.writes:
            return
        state = state | {"best": self.best, "best_step": self.best_step, "metrics_bytes": self.metrics.tell()}

        def write(folder: Path) -> None:
            save(folder)
            torch.save(state, folder / "state.pt")

        if write_whole(self.folder / "checkpoints" / f"step_{state['step']:06d}", write):
            for old in sorted((self.folder / "checkpoints").glob("step_*"))[: -self.keep]:
                shutil.rmtree(old)

    def finish(self, table: str, rows: dict[str, Row], pairs: list[tuple[dict, dict]]) -> list[Path]:
        """Writes the final table, its rows and pages of trees before and after, and draws the plots; returns those."""
        about = read_about(self.folder)
        write_results(self.folder, about["settings"], about["versions"], rows, read_curve(self.folder))
        for n, pair in enumerate(pairs, 1):
            self.keep_page(f"question_{n}", *pair)
        (self.folder / "table.txt").write_text(table + "\n", encoding="utf-8")  # last: a run that has it is finished
        write_index(self.folder)
        return plot_run(self.folder)


def open_logger(config: RunConfig) -> Callable[[dict], Any]:
    """What --report_to names, as a function of a step's metrics; its package is imported only then."""
    if config.report_to == "none":
        return lambda row: None
    if config.report_to == "tensorboard":
        writer = import_module("torch.utils.tensorboard").SummaryWriter(config.output_dir)
        return lambda row: [writer.add_scalar(name, value, row["step"]) for name, value in row.items()]
    tracker = import_module(config.report_to)  # trackio has wandb's interface
    tracker.init(project="arpo", name=Path(config.output_dir).name, config=asdict(config))
    return lambda row: tracker.log(row, step=row["step"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_curve(folder: Path) -> dict[str, list]:
    """Columns of a run's metrics, from step 0; None where a step has no such number. Calls and tokens add up."""
    rows = read_metrics(folder)
    questions = read_about(folder)["settings"]["questions_per_step"]
    calls = np.cumsum([row.get("calls_per_question", 0) * questions for row in rows])
    return {
        "step": [row["step"] for row in rows],
        "accuracy": [row.get("accuracy") for row in rows],
        "dev_accuracy": [row.get("dev_accuracy") for row in rows],
        "calls": [round(total) for total in calls],
        "tokens": [int(total) for total in np.cumsum([row.get("decoded", 0) for row in rows])],
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft", "numpy")} | {
        "python": platform.python_version()
    }


def write_about(folder: Path, config: Settings, size: str) -> None:
    about = {"size": size, "settings": asdict(config), "versions": versions()}
    whole = folder / "run.json.new"
    whole.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    whole.replace(folder / "run.json")


def read_about(folder: str | Path) -> dict[str, Any] | None:
    """A run's settings, size and versions; None where the folder holds no run."""
    file = Path(folder) / "run.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if about is None or isinstance(about["settings"], dict):
            return about
        found = "other settings"
    except (ValueError, LookupError, TypeError) as error:
        found = str(error)
    raise ValueError(f"{file}: expected the settings of a run as JSON, found {found}")


STATE = "step", "drawn", "totals", "weights", "optimizer", "best", "metrics_bytes"  # what a checkpoint has at least


def find_checkpoint(resume: str, output_dir: str, default: str) -> Path | None:
    """The newest checkpoint that can be read of the run that --resume names; None where "auto" finds nothing to resume.

    Raises ValueError where there is no run to go on with, or nothing of it can be read.
    """
    folder = Path(output_dir or default) if resume == "auto" else Path(resume)
    found = sorted(folder.glob("checkpoints/step_*/state.pt"), reverse=True)
    if not found and resume == "auto":
        return None
    if not found:
        raise ValueError(f"--resume {folder}: expected a run's folder with checkpoints, found none in it")
    if output_dir and Path(output_dir).resolve() != folder.resolve():
        raise ValueError(f"--output_dir: expected the run to go on in its own folder {folder}, found {output_dir}")
    for checkpoint in (file.parent for file in found):
        try:
            read_checkpoint(checkpoint)
            return checkpoint
        except ValueError as error:
            print(f"{checkpoint} cannot be read ({error}): an older one is tried", file=sys.stderr)
    raise ValueError(f"expected a checkpoint in {folder / 'checkpoints'}, found none that can be read")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state that `Run.checkpoint` wrote; its tensors are read when they are used. Raises ValueError."""
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
        if lacking := set(STATE) - set(state):
            raise ValueError(f"expected {' and '.join(sorted(lacking))} in it, found none")
        expected = int(state["metrics_bytes"])
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.100}") from None
    metrics = folder.parent.parent / "metrics.jsonl"
    if not metrics.is_file() or metrics.stat().st_size < expected:
        found = f"{metrics.stat().st_size:,}" if metrics.is_file() else "no such file"
        raise ValueError(f"expected {expected:,} bytes in {metrics.name}, the steps before it, found {found}")
    return state


def begin(config: RunConfig) -> dict[str, Any] | None:
    """The state of the checkpoint that the run goes on from, if it does; ValueError for a second run in one folder."""
    folder = Path(config.output_dir)
    if PartialState().is_main_process:
        lock(folder)
    if config.resume not in ("", "auto"):
        return read_checkpoint(Path(config.resume))
    return None


def rehearse(config: RunConfig) -> None:
    """Raises ValueError or ImportError for what would stop a run before its first step or at its first line."""
    if config.report_to != "none":
        import_module("torch.utils.tensorboard" if config.report_to == "tensorboard" else config.report_to)
    folder = Path(config.output_dir)
    no_file(folder, "--output_dir")
    if config.resume in ("", "auto"):
        refuse_to_lose(folder, config.overwrite)


def no_file(folder: Path, flag: str) -> None:
    """Raises ValueError where a file stands in the way of a folder."""
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise ValueError(f"{flag} {folder}: expected a folder, found a file ({file})")


def refuse_to_lose(folder: Path, overwrite: bool) -> None:
    """Raises ValueError where a new run would replace another run or a model; a run may be replaced if asked for."""
    others, expected = "--overwrite replaces it, --output_dir starts elsewhere", f"--output_dir {folder}: expected a"
    about, work = read_about(folder), [name for name in NO_RUNS if (folder / name).exists()]
    if work and not overwrite:
        if "table.txt" in work:
            raise ValueError(f"{expected} new folder, found a finished run: {others}")
        if list(folder.glob("checkpoints/step_*")):
            raise ValueError(f"{expected} new folder, found an unfinished run: --resume auto goes on, {others}")
        if about and about["settings"].get("stage") == "sft":
            raise ValueError(f"{expected} new folder, found a model after SFT: {others}")
    if work and not about:
        found = f"{work[0]} but no run.json, which a run would replace"
        raise ValueError(f"{expected} run's folder or an empty one, found {found}")


def refuse_a_run(folder: Path) -> None:
    """Raises ValueError where an evaluation would write among the files of a run or of a model."""
    no_file(folder, "--output_dir")
    if found := next((name for name in ("run.json", *NO_RUNS) if (folder / name).exists()), None):
        expected = "expected an evaluation's folder or a new one"
        raise ValueError(f"--output_dir {folder}: {expected}, found one with {found}")


@contextlib.contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Makes a run's folder; one in which nothing was written goes again, and so do its parents."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made and [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
        with contextlib.suppress(OSError):  # not empty
            for place in made:
                place.rmdir()


# What a folder has that is a model, or somebody's work, and no run.
NO_RUNS = "config.json", "adapter_config.json", "metrics.jsonl", "table.txt", "checkpoints", "trees", "plots"
LOCKS: dict[Path, IO] = {}  # open files whose locks end with this process, however it ends


def lock(folder: Path) -> None:
    """Makes this process the only one that writes to a run's folder; ValueError if another one does."""
    import fcntl  # here, since Windows, where nothing can be trained, lacks it

    place = folder.resolve()
    file = LOCKS.get(place) or (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"expected {folder} for this run alone, found another run that writes to it") from None
    LOCKS[place] = file


def write_whole(folder: Path, write: Callable[[Path], None]) -> bool:
    """Calls write(folder) so that under its name there is never a part of it. False, with a line, if the disk is full.

    It gets its name at the very end, so a run that is killed at any point loses nothing that was complete. Whatever
    else goes wrong is an OSError.
    """
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for file in (path for path in partial.rglob("*") if path.is_file()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        return True
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's error
        reason = str(error).splitlines()[0]
        if not disk_is_full(error, folder):
            raise OSError(f"could not write {folder} ({reason})") from None
        tqdm.write(f"could not write {folder} ({reason}); what was saved before is untouched")
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def disk_is_full(error: Exception, folder: Path) -> bool:
    """Torch's own message says nothing of the cause, so the disk is asked as well."""
    there = next(place for place in folder.absolute().parents if place.exists())
    told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return told or shutil.disk_usage(there).free < 2**20
