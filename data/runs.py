"""What a run leaves on disk, and how it is read again: settings, metrics, trees, checkpoints, the best model, plots.

    run.json            settings, the size of the model they follow, versions
    metrics.jsonl       a line of numbers a step; step 0 is before training
    trees/, plots/      drawn trees, pictures of the metrics
    checkpoints/step_*  what a resumed run needs, and the model in Hugging Face form
    sft/                the model after its cold start
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
        """One of a step's trees, as text and as a page."""
        if self.writes:
            (self.folder / "trees" / f"step_{step:04d}.txt").write_text(text, encoding="utf-8")
            self.keep_page(f"step_{step:04d}", view)

    def keep_page(self, name: str, *views: dict[str, Any]) -> None:
        """A page of trees to one question, and the index that leads to it."""
        page = {"trees": views, "index": "../index.html"}
        write_page(self.folder / "trees" / f"{name}.html", "tree", views[0]["question"], page)
        write_index(self.folder, PANELS)

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

    def finish(self, table: str) -> list[Path]:
        """Writes the final table and draws the plots; returns their files."""
        (self.folder / "table.txt").write_text(table + "\n", encoding="utf-8")
        write_index(self.folder, PANELS)
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


def write_about(folder: Path, config: Settings, size: str) -> None:
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    about = {"size": size, "settings": asdict(config), "versions": versions | {"python": platform.python_version()}}
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


def find_checkpoint(resume: str, output_dir: str) -> Path | None:
    """The newest complete checkpoint of the run that --resume names; None where "auto" finds nothing to resume."""
    folder = Path(output_dir if resume == "auto" else resume)
    found = sorted(folder.glob("checkpoints/step_*/state.pt"))
    if not found and resume != "auto":
        raise ValueError(f"--resume {folder}: expected a run's folder with checkpoints, found none in it")
    return found[-1].parent if found else None


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
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise ValueError(f"--output_dir {folder}: expected a folder, found a file ({file})")
    if config.resume in ("", "auto"):
        refuse_to_lose(folder, config.overwrite)


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


@contextlib.contextmanager
def folder_for(config: RunConfig) -> Iterator[None]:
    """Makes a run's folder; one in which nothing was written goes again, and so do its parents."""
    folder = Path(config.output_dir)
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


def read_checkpoint(newest: Path) -> dict[str, Any]:
    """The state of a checkpoint, or of the newest older one that can be read. Raises ValueError if there is none."""
    for checkpoint in sorted(newest.parent.glob("step_*"), reverse=True):
        if checkpoint.name <= newest.name:
            try:
                return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                print(f"{checkpoint} cannot be read ({reason:.100}): an older one is tried", file=sys.stderr)
    raise ValueError(f"expected a checkpoint in {newest.parent}, found none that can be read")


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
        reason, full = str(error).splitlines()[0], disk_is_full(error, folder)
        shutil.rmtree(partial, ignore_errors=True)
        if not full:
            raise OSError(f"could not write {folder} ({reason})") from None
        tqdm.write(f"could not write {folder} ({reason}); what was saved before is untouched")
        return False


def disk_is_full(error: Exception, folder: Path) -> bool:
    """Torch's own message says nothing of the cause, so the disk is asked as well."""
    there = next(place for place in folder.absolute().parents if place.exists())
    told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return told or shutil.disk_usage(there).free < 2**20


PANELS = {
    "reward": ("Reward and accuracy", ["reward", "accuracy", "dev_accuracy"]),
    "tool_calls": ("Tool calls", ["calls_per_leaf", "calls_per_question"]),
    "entropy": ("Token entropy (nats)", ["initial_entropy", "entropy_after_tools"]),
    "branching": ("Branch decisions a step", ["decisions", "forks", "top_ups"]),
}


def plot_run(folder: Path) -> list[Path]:
    """A PNG file for each of PANELS, from a run's metrics."""
    import matplotlib  # here, for it takes half a second to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (folder / "plots").mkdir(exist_ok=True)
    files = []
    for name, (title, keys) in PANELS.items():
        figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=120)
        for key in keys:
            plot_line(axes, key, [(row["step"], row[key]) for row in rows if key in row])
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.tight_layout()
        files.append(folder / "plots" / f"{name}.png")
        figure.savefig(files[-1])
        pyplot.close(figure)
    return files


def plot_line(axes, key: str, points: list[tuple[float, float]]) -> None:
    """Few points as they are; many faintly, under their running mean, since questions differ from step to step."""
    if not points:
        return
    steps, values = map(np.array, zip(*points))
    few = len(points) < 20
    (line,) = axes.plot(steps, values, "o-" if few else "-", alpha=1 if few else 0.25)
    window = 1 if few else len(points) // 10
    mean = np.convolve(values, np.ones(window) / window, "valid")
    axes.plot(steps[window - 1 :], mean, color=line.get_color(), label=key.replace("_", " "))
