"""Changes of the live source, held in memory: statements taken out, fragments replaced, modules made of the result.

A selector must fit exactly one place, so that nobody is graded on a text that has moved. Left out: what is taken out
and why (`course/`, `bugs.py`).
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = "", "data"  # where the project's modules lie


@dataclass(frozen=True)
class Blank:
    """Statements of a function, from the one that begins with `first` to the one that begins with `last`."""

    file: str
    function: str  # such as "GrowingTree.sample"
    first: str  # "" is the whole body after the docstring
    last: str = ""  # "" is `first` alone

    def lines(self, text: str) -> tuple[int, int]:
        """Numbers of the first and the last line, from 1. Raises LookupError if not exactly one place fits."""
        function = self._function(ast.parse(text))
        if not self.first:
            body = function.body[1:] if ast.get_docstring(function) else function.body
            return body[0].lineno, body[-1].end_lineno
        blocks = [block for node in ast.walk(function) for block in vars(node).values() if is_block(block)]
        starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
        begins = lambda node, prefix: text.startswith(prefix, starts[node.lineno - 1] + node.col_offset)
        ends = [
            [[node for node in block if begins(node, prefix)] for block in blocks]
            for prefix in (self.first, self.last or self.first)
        ]
        fits = [(a, b) for firsts, lasts in zip(*ends) for a in firsts for b in lasts if a.lineno <= b.lineno]
        if len(fits) != 1:
            raise LookupError(f"{self.file}:{self.function}: expected one {self.first!r}, found {len(fits)}")
        return fits[0][0].lineno, fits[0][1].end_lineno

    def _function(self, tree: ast.AST) -> ast.FunctionDef:
        for name in self.function.split("."):
            named = [node for node in ast.iter_child_nodes(tree) if getattr(node, "name", "") == name]
            if len(named) != 1:
                raise LookupError(f"{self.file}: expected one {self.function}, found {len(named)}")
            (tree,) = named
        return tree


def is_block(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], ast.stmt)


@dataclass(frozen=True)
class Swap:
    """A fragment of a file and what stands in its place. `old` must occur exactly once."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        if (count := text.count(self.old)) != 1:
            raise LookupError(f"{self.file}: expected {self.old!r} once, found it {count} times")
        return text.replace(self.old, self.new)


def source(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def swapped(swaps: Iterable[Swap]) -> dict[str, str]:
    """The texts of the files that the swaps change."""
    texts: dict[str, str] = {}
    for swap in swaps:
        texts[swap.file] = swap.apply(texts.get(swap.file) or source(swap.file))
    return texts


def blanked(blanks: Iterable[tuple[Blank, str]]) -> dict[str, str]:
    """The texts of files with statements taken out; in their place an error is raised that says what is asked."""
    places: dict[str, list[tuple[int, int, str]]] = {}
    for blank, told in blanks:
        places.setdefault(blank.file, []).append((*blank.lines(source(blank.file)), told))
    texts = {}
    for file, spans in places.items():
        lines = source(file).splitlines(keepends=True)
        for first, last, told in sorted(spans, reverse=True):
            indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
            lines[first - 1 : last] = [f"{indent}{asking(told)}\n"]
        texts[file] = "".join(lines)
    return texts


def asking(told: str) -> str:
    """What stands in a blank's place."""
    return f"raise NotImplementedError({told!r})"


def taken_out(blanks: Iterable[Blank]) -> list[str]:
    """The lines that stood in the blanks, without their indentation."""
    lines = []
    for blank in blanks:
        first, last = blank.lines(source(blank.file))
        lines += [line.strip() for line in source(blank.file).splitlines()[first - 1 : last]]
    return lines


def project_modules() -> dict[str, Path]:
    """The files of all modules of the project by name."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py"))]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files}
    return {name: file for file, name in names.items()}


class Changed(SourceFileLoader):
    """Loads a module from a text in place of the one in its file."""

    def __init__(self, name: str, path: str, text: str):
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str):
        return compile(self.text, self.path, "exec")


@contextmanager
def loaded(texts: dict[str, str], modules: Iterable[str]) -> Iterator[None]:
    """Inside, importing one of `modules` gives one made anew, with the texts given in place of the files' own."""
    before = dict(sys.modules)
    parent = {name: vars(before["data"]).get(name.partition(".")[2]) for name in modules if "data" in before}
    finder = Finder(texts, tuple(modules))
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in modules:
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]
        for name, module in parent.items():
            if module is not None and "." in name:
                setattr(before["data"], name.partition(".")[2], module)


class Finder:
    def __init__(self, texts: dict[str, str], modules: tuple[str, ...]):
        self.texts, self.modules = texts, modules

    def find_spec(self, name: str, path=None, target=None):
        if name not in self.modules:
            return None
        file = f"{name.replace('.', '/')}.py"
        loader = Changed(name, str(ROOT / file), self.texts.get(file) or source(file))
        return spec_from_file_location(name, ROOT / file, loader=loader)
