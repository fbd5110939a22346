"""Wrong calls of the commands: each gets one line that says what was expected and what was found, and exit code 2.

A line of a table is a call, from a folder that the fixture `place` fills, and after each bar some words that its line
must hold. Nothing of that folder may be another afterwards, nothing new may lie in it, and no path may be looked for
on a network. Most calls are made in this process, some as a user makes them.
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import eval
import tools
import train
from arpo import Policy
from data import runs
from data.models import TINY

ROOT = Path(__file__).parent.parent
COMMANDS = {"train": train, "eval": eval, "tools": tools}


FLAGS = """
train --alog grpo                             | --alog | perhaps --algo?
train --max_step 5                            | --max_step, 5 | perhaps --max_steps?
train --learning-rat 1e-3                     | --learning_rat | perhaps --learning_rate?
train --num_gen 1                             | flags and their values | found --num_gen, 1
train --no_such_flag 1                        | --help lists them | found --no_such_flag, 1
train --ask "What is it?"                     | flags and their values | found --ask, What is it?
train grpo                                    | flags and their values | found grpo
train -seed 1                                 | flags and their values | found -seed, 1
train —seed 1                                 | flags and their values | found —seed, 1
train -- --seed 1                             | flags and their values | found
train --max_steps                             | --max_steps | a value | found none
train --output_dir x --max_steps              | --max_steps: expected a value, found none
train --algo                                  | --algo | a value | found none
train --seed=                                 | --seed | a whole number | ''
train --max_steps x                           | --max_steps: expected a whole number, found 'x'
train --max_steps 1.5                         | --max_steps: expected a whole number, found '1.5'
train --max_steps 1e3                         | --max_steps | a whole number | '1e3'
train --max_steps 0                           | --max_steps: expected at least 1, found 0
train --max_steps -3                          | --max_steps: expected at least 1, found -3
train --max_steps 1 2                         | flags and their values | found 2
train --seed -1                               | --seed: expected at least 0, found -1
train --temperature x                         | --temperature: expected a number, found 'x'
train --temperature 0,5                       | --temperature: expected a number, found '0,5'
train --temperature -1                        | --temperature: expected at least 0, found -1.0
train --temperature 0                         | --temperature | above 0 in training | found 0
train --learning_rate nan                     | --learning_rate | a finite number | found nan
train --learning_rate inf                     | --learning_rate | a finite number | found inf
train --learning_rate -1e-5                   | --learning_rate | at least 0 | found -1e-05
train --epsilon_high -0.2                     | --epsilon_high | at least 0 | found -0.2
train --entropy_weight nan                    | --entropy_weight | a finite number | found nan
train --kl_coef -1                            | --kl_coef: expected at least 0, found -1.0
train --weight_decay -0.1                     | --weight_decay | at least 0 | found -0.1
train --warmup_steps -1                       | --warmup_steps | at least 0 | found -1
train --python_seconds 0                      | --python_seconds | at least 1 | found 0
train --reward_bonus -1                       | --reward_bonus | at least 0 | found -1
train --threads 100000                        | --threads | at most | found 100000
train --dynamic_sampling yes                  | flags and their values | found yes
train --dynamic_sampling=yes                  | flags and their values | found yes
train --load_in_4bit maybe                    | maybe
train --algo ppo                              | --algo | 'arpo' | found 'ppo'
train --preset deepsearch                     | --preset | 'deep-search' | found 'deepsearch'
train --stage dpo                             | --stage | 'rl', 'sft' | found 'dpo'
train --branch_rule dice                      | --branch_rule: expected one of | 'coin', 'best', found 'dice'
train --loss_type ppo                         | --loss_type | 'token_mean', 'sequence_mean', 'constant' | found 'ppo'
train --optim sgd                             | --optim | 'adamw' | found 'sgd'
train --lr_scheduler_type linear              | --lr_scheduler_type | 'cosine' | found 'linear'
train --report_to mlflow                      | --report_to | 'wandb' | found 'mlflow'
train --report_to wandb                       | wandb | pip install wandb
train --metric bleu                           | --metric | 'em', 'f1', 'math' | found 'bleu'
train --cache_mode off                        | --cache_mode | 'offline' | found 'off'
train --tool_limits knife=1                   | --tool_limits | with python, search, browse | found 'knife=1'
train --tool_limits search=x                  | --tool_limits | such as "search=3,python=5" | found 'search=x'
train --tool_limits 3                         | --tool_limits | such as "search=3,python=5" | found '3'
train --tool_limits search=3;python=5         | --tool_limits | such as "search=3,python=5" | found 'search=3;python=5'
train --num_generations 1                     | num_generations (M = 1) | found 4
train --num_generations 4 --num_initial 5     | num_initial (N) must be from 1 to num_generations (M = 4) | found 5
train --algo grpo --num_initial 2             | --algo grpo | all leaves to start from the prompt | found
train --num_minibatches 13                    | no more minibatches than questions | --num_minibatches 13,
eval --samples 0                              | --samples: expected at least 1, found 0
eval --samples 8.0                            | --samples | a whole number | '8.0'
eval --count -5                               | --count | at least 1 | found -5
eval --width 0                                | --width | at least 1 | found 0
eval --split validation                       | --split | 'all', 'train', 'dev', 'test' | found 'validation'
eval --modle model                            | --modle | perhaps --model?
eval --max_steps 5                            | flags and their values | found --max_steps, 5
eval --algo grpo                              | flags and their values | found --algo, grpo
eval --ask --answer                           | --answer | a value | found none
eval --ask --num_generations 2 --num_initial 3 | num_initial (N) must be from 1 to num_generations (M = 2) | found 3
eval --ask --ask What is it?                  | flags and their values | is, it?
eval "What is it?"                            | flags and their values | found What is it?
eval --ask "   "                              | --ask | a question | found
eval --ask --merge merged                     | --merge | holds no adapter
eval --temperature nan                        | --temperature | a finite number | found nan
"""

DATA = """
train --dry_run --data absent.jsonl | absent.jsonl: no such file
train --dry_run --data goot.jsonl | goot.jsonl: no such file; did you mean good.jsonl?
train --dry_run --data ./absent | ./absent: no such file
train --dry_run --data nowhere/absent.jsonl | nowhere/absent.jsonl: no such file
train --dry_run --data ~no_such_user/questions.jsonl | ~no_such_user/questions.jsonl: no such file
train --dry_run --data few.jsonl | few.jsonl: expected at least 10 questions to train, choose and test on
train --dry_run --data same.jsonl | same.jsonl: expected at least 10 questions to train, choose and test o
train --dry_run --data empty.jsonl | empty.jsonl: no questions in this file
train --dry_run --data blank.jsonl | blank.jsonl: no questions in this file
train --dry_run --data torn.jsonl | torn.jsonl, line 1: Expecting ',' delimiter: line 1 column 48 (char 47
train --dry_run --data numbers.jsonl | numbers.jsonl, line 1: expected an object, found int; 3 of 3 rows are
train --dry_run --data arrays.jsonl | arrays.jsonl, line 1: expected an object, found list (an array of rows
train --dry_run --data spread.jsonl | spread.jsonl: expected an object on each line, found one over several;
train --dry_run --data keys.jsonl | keys.jsonl, line 1: expected a text under one of question, problem, qu
train --dry_run --data lines.json | lines.json, read as JSON: Extra data: line 2 column 1 (char 49); lines
train --dry_run --data object.json | object.json, read as JSON: expected an array, found dict with a list u
train --dry_run --data text.json | text.json, read as JSON: expected an array, found str
train --dry_run --data torn.json | torn.json, read as JSON: Unterminated string starting at: line 1 colum
train --dry_run --data wide.csv | wide.csv, row 1: expected 2 values as in the heading, found more: ['2'
train --dry_run --data quote.csv | quote.csv, read as CSV: unexpected end of data
train --dry_run --data other.csv | other.csv, row 1: expected a text under one of question, problem, quer
train --dry_run --data latin.csv | latin.csv, read as CSV: 'utf-8' codec can't decode byte 0xf6 in positi
train --dry_run --data text.parquet | text.parquet: not a whole parquet file (Could not open Parquet input s
train --dry_run --data words.txt | words.txt: expected a file that ends in .json, .jsonl, .parquet, .csv,
train --dry_run --data packed.jsonl.gz | packed.jsonl.gz: expected a file that ends in .json, .jsonl, .parquet,
train --dry_run --data packed.jsonl | packed.jsonl, line 1: 'utf-8' codec can't decode byte 0x8b in position
train --dry_run --data folder.jsonl | folder.jsonl: a folder and no file
train --dry_run --data . | .: a folder and no file
train --dry_run --data runs/ | runs/: a folder and no file
train --dry_run --data gsm9k | unknown data 'gsm9k': expected world, aime24, aime25, math500, gsm8k,
train --dry_run --data "" | unknown data '': expected world, aime24, aime25, math500, gsm8k, math,
train --dry_run --data world=-1 | --data world=-1: expected one source, or name=weight,name=weight with
train --dry_run --data world=0 | --data world=0: expected one source, or name=weight,name=weight with w
train --dry_run --data world=0.3,gsm8k | --data world=0.3,gsm8k: expected one source, or name=weight,name=weigh
train --dry_run --data world=0.5,absent.jsonl=0.5 | absent.jsonl: no such file
train --dry_run --data world=0.5,=0.5 | --data world=0.5,=0.5: expected one source, or name=weight,name=weight
train --dry_run --data world=x | --data world=x: expected one source, or name=weight,name=weight with w
train --dry_run --data aime24 | aime24 has no training questions: it is a test
train --dry_run --search google | expected a corpus (.jsonl) or its index (.db) to search in, found 'goo
train --dry_run --search absent.jsonl | [Errno 2] No such file or directory: 'absent.jsonl'
train --dry_run --search absent.db | [Errno 2] No such file or directory: 'absent.db'
train --dry_run --search words.txt | expected a corpus (.jsonl) or its index (.db) to search in, found 'wor
train --dry_run --search words.db | words.db: an empty corpus, no index of one, or of another version: ind
train --dry_run --search other.db | other.db: an empty corpus, no index of one, or of another version: ind
train --dry_run --search textless.jsonl | textless.jsonl, line 1: expected title and text (text, contents, conte
train --dry_run --search titles.jsonl | titles.jsonl: pages of several titles have the address 'a': ['Paris',
train --dry_run --search torn.jsonl | torn.jsonl, line 1: Expecting ',' delimiter: line 2 column 1 (char 48)
train --dry_run --search packed.jsonl | packed.jsonl, line 1: 'utf-8' codec can't decode byte 0x8b in position
train --dry_run --search folder.jsonl | [Errno 21] Is a directory: 'folder.jsonl'
train --dry_run --search . | expected a corpus (.jsonl) or its index (.db) to search in, found '.'
train --dry_run --search serper | no key: set the environment variable SERPER_API_KEY
train --dry_run --search brave | no key: set the environment variable BRAVE_API_KEY
train --dry_run --search serper --web_cache words.db | the web's answers cannot be kept in words.db: file is not a
train --dry_run --search serper --web_cache nowhere/cache.db | the web's answers cannot be kept in nowhere/cache.db:
train --dry_run --search serper --web_cache runs | the web's answers cannot be kept in runs: unable to open database
train --dry_run --search serper --web_cache absent.db --cache_mode offline | offline needs a cache file, and there is
train --dry_run --reader ftp://localhost | --reader ftp://localhost --reader_model '': only addresses such as htt
train --dry_run --reader basic | --reader basic --reader_model '': only addresses such as https://host/
train --dry_run --model runs/absent | --model runs/absent: expected a folder with a model, a .gguf file or a
train --dry_run --model runs/finisht | --model runs/finisht: expected a folder with a model, a .gguf file or
train --dry_run --model ./absent | --model ./absent: expected a folder with a model, a .gguf file or a hu
train --dry_run --model ~/absent_model | --model ~/absent_model: expected a folder with a model, a .gguf file o
train --dry_run --model /nowhere/model | --model /nowhere/model: expected a folder with a model, a .gguf file o
train --dry_run --model a/b/c | --model a/b/c: expected a folder with a model, a .gguf file or a hub i
train --dry_run --model words.txt | --model words.txt: expected a folder with a model, a .gguf file or a h
train --dry_run --model fake.gguf | reading a .gguf file needs: pip install gguf
train --dry_run --model model.safetensors | --model model.safetensors: expected a folder with a model, a .gguf fil
train --dry_run --model runs/torn_run | runs/torn_run/run.json: expected the settings of a run as JSON, found
train --dry_run --model runs/odd_run | runs/odd_run/run.json: expected the settings of a run as JSON, found o
train --dry_run --output_dir taken | --output_dir taken: expected a folder, found a file
train --dry_run --output_dir runs/finished | runs/finished holds a finished run: --overwrite replaces it, --output_
train --dry_run --output_dir runs/unfinished | runs/unfinished holds an unfinished run: --resume auto goes on, --over
train --dry_run --overwrite --output_dir taken | --output_dir taken: expected a folder, found a file
train --dry_run --resume runs/absent | --resume runs/absent: expected a run's folder with checkpoints, found
train --dry_run --resume runs/begun | --resume runs/begun: expected a run's folder with checkpoints, found n
train --dry_run --resume taken | --resume taken: expected a run's folder with checkpoints, found none i
train --dry_run --resume runs/torn_run | runs/torn_run/run.json: expected the settings of a run as JSON, found
train --dry_run --resume runs/odd_run | runs/odd_run/run.json: expected the settings of a run as JSON, found o
train --dry_run --resume runs/unfinished --algo grpo | --resume: expected the run's own --algo arpo, found grpo
train --dry_run --resume runs/unfinished --max_steps 0 | --max_steps: expected at least 1, found 0
train --dry_run --resume auto --output_dir taken | --output_dir taken: expected a folder, found a file
train --dry_run --resume | --resume: expected a value, found none
train --dry_run --report_to wandb | No module named 'wandb': pip install wandb
train --dry_run --threads -1 | --threads: expected at least 0, found -1
train --dry_run --save_steps 0 | --save_steps: expected at least 1, found 0
train --output_dir taken | --output_dir taken | a folder | found a file
train --output_dir runs/finished | runs/finished holds a finished run: --overwrite replaces it, --output_
train --output_dir runs/busy | expected runs/busy for this run alone, found another run that writes t
train --stage sft --output_dir taken | --output_dir taken | a folder | found a file
eval --model runs/absent | --model runs/absent: expected a folder with a model, a .gguf file or a
eval --model void | model
eval --model words.txt | --model words.txt: expected a folder with a model, a .gguf file or a h
eval --model torn_weights | model
eval --model mute | model
eval --model lost_adapter | model
eval --model torn_adapter | model
eval --model runs/torn_run | runs/torn_run/run.json: expected the settings of a run as JSON, found
eval --model runs/typed_run | model
eval --data absent.jsonl | absent.jsonl: no such file
eval --data empty.jsonl | empty.jsonl: no questions in this file
eval --data words.txt | words.txt: expected a file that ends in .json, .jsonl, .parquet, .csv,
eval --data few.jsonl --split dev | few.jsonl: expected at least 10 questions to train, choose and test on
eval --data gsm9k | unknown data 'gsm9k': expected world, aime24, aime25, math500, gsm8k,
eval --data aime24 --split train | aime24 has no training questions: it is a test
eval --search google | expected a corpus (.jsonl) or its index (.db) to search in, found 'goo
eval --search words.db | words.db: an empty corpus, no index of one, or of another version: ind
eval --search serper | no key: set the environment variable SERPER_API_KEY
eval --merge merged | --merge: tiny holds no adapter (adapter_config.json)
eval --merge merged --model model | --merge: model holds no adapter (adapter_config.json)
eval --merge taken --model lost_adapter | expected the base model of the adapter in lost_adapter at /nowhere/bas
eval --ask --search absent.jsonl | [Errno 2] No such file or directory: 'absent.jsonl'
tools --help-me | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools index | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools index absent.jsonl | [Errno 2] No such file or directory: 'absent.jsonl'
tools index textless.jsonl | textless.jsonl, line 1: expected title and text (text, contents, conte
tools index titles.jsonl | titles.jsonl: pages of several titles have the address 'a': ['Paris',
tools index torn.jsonl | torn.jsonl, line 1: Expecting ',' delimiter: line 2 column 1 (char 48)
tools index packed.jsonl | packed.jsonl, line 1: 'utf-8' codec can't decode byte 0x8b in position
tools index words.txt | words.txt, line 1: Expecting value: line 1 column 1 (char 0), found Wh
tools index words.db | words.db, line 1: Expecting value: line 1 column 1 (char 0), found no
tools index folder.jsonl | [Errno 21] Is a directory: 'folder.jsonl'
tools index . | PosixPath('.') has an empty name
tools index corpus.jsonl good.jsonl | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools index --corpus corpus.jsonl | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools import | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools import answers.json | expected index corpus.jsonl, or import answers.json cache.db [kind], f
tools import torn.answers cache.db | expected an object of queries and texts as JSON
tools import list.json cache.db | list.json: expected an object of queries and texts, found list
tools import nested.json cache.db | expected a text as the answer to 'who is it', found {'a': 1}
tools import text.json cache.db | text.json: expected an object of queries and texts, found str
tools import answers.json words.db | the web's answers cannot be kept in words.db: file is not a database
tools import answers.json nowhere/cache.db | the web's answers cannot be kept in nowhere/cache.db: unable to open d
tools import answers.json runs | the web's answers cannot be kept in runs: unable to open database file
tools import answers.json cache.db "search serper 3" more | expected index corpus.jsonl, or import answers.json
tools import folder.jsonl cache.db | [Errno 21] Is a directory: 'folder.jsonl'
tools export answers.json | expected index corpus.jsonl, or import answers.json cache.db [kind], f
"""


def rows(count, **more):
    return [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} | more for n in range(count)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def fill(place):
    """Files, models and runs to call the commands with, most of them wrong."""
    talk = [{"messages": [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]}]
    texts = {
        "good.jsonl": lines(rows(20)),
        "few.jsonl": lines(rows(3)),
        "same.jsonl": lines(rows(1) * 20),
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
        "torn.jsonl": lines(rows(20))[:-9].replace('"}', '"', 5),
        "numbers.jsonl": "1\n2\n3\n",
        "arrays.jsonl": "[1]\n[2]\n",
        "spread.jsonl": json.dumps(rows(20), indent=1),
        "keys.jsonl": lines([{"q": "What?", "a": "this"}] * 20),
        "images.jsonl": lines(rows(20, image="a.png")),
        "lines.json": lines(rows(20)),
        "object.json": json.dumps({"rows": rows(20)}),
        "text.json": '"only a text"',
        "torn.json": json.dumps(rows(20))[:-5],
        "wide.csv": "question,answer\nWhat is 1?,1,2,3\n",
        "quote.csv": 'question,answer\n"What is 1?,1\n',
        "other.csv": "a,b\n1,2\n",
        "text.parquet": "question,answer\n",
        "words.txt": "What is 1 plus 1?\n2\n",
        "talk.jsonl": lines(talk * 12),
        "chat.jsonl": lines([{"chat": "hello"}] * 12),
        "roles.jsonl": lines([{"messages": [{"role": "wizard", "content": "hello"}]}] * 12),
        "corpus.jsonl": lines([{"title": "Paris", "text": "The capital of France."}]),
        "textless.jsonl": lines([{"title": "Paris", "body_of_text": "The capital of France."}]),
        "titles.jsonl": lines([{"title": title, "text": "x", "address": "a"} for title in ("Paris", "Rome")]),
        "words.db": "no database",
        "answers.json": json.dumps({"who is it": "nobody"}),
        "list.json": json.dumps(["who is it"]),
        "nested.json": json.dumps({"who is it": {"a": 1}}),
        "torn.answers": '{"who',
        "taken": "a file, and no folder",
        "fake.gguf": "no model",
        "model.safetensors": "no model",
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    (place / "packed.jsonl.gz").write_bytes(gzip.compress(lines(rows(20)).encode()))
    (place / "packed.jsonl").write_bytes(gzip.compress(lines(rows(20)).encode()))
    (place / "latin.csv").write_bytes("question,answer\nWo ist Köln?,am Rhein\n".encode("latin-1"))
    (place / "folder.jsonl").mkdir()
    with contextlib.closing(sqlite3.connect(place / "other.db")) as db:
        db.execute("CREATE TABLE t (x)")
    fill_models(place)
    fill_runs(place)


def fill_models(place):
    config = (TINY / "config.json").read_text()
    files = {
        "void": {},
        "torn_config": {"config.json": '{"model_type": '},
        "odd_config": {"config.json": '{"model_type": "no_such_model"}'},
        "list_config": {"config.json": "[]"},
        "no_weights": {"config.json": config},
        "torn_weights": {"config.json": config, "model.safetensors": "no weights"},
        "lost_adapter": {"adapter_config.json": json.dumps({"base_model_name_or_path": "/nowhere/base"})},
        "torn_adapter": {"adapter_config.json": "{"},
        "vain_adapter": {"adapter_config.json": "{}"},
    }
    shutil.copytree(TINY, place / "model")
    for name, texts in files.items():
        (place / name).mkdir()
        for file, text in texts.items():
            (place / name / file).write_text(text)
    shutil.copytree(TINY, place / "mute")
    for file in (place / "mute").glob("*token*"):
        file.unlink()


def fill_runs(place):
    for name in ("finished", "unfinished", "torn_state", "torn_run", "odd_run", "lost_run", "typed_run"):
        folder = place / "runs" / name
        (folder / "checkpoints/step_000003").mkdir(parents=True)
        (folder / "checkpoints/step_000003/state.pt").write_text("no checkpoint")
        config = train.read_flags(["--output_dir", str(folder)])
        runs.write_about(folder, config, "tiny")
        (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    (place / "runs/finished/table.txt").write_text("a table")
    shutil.rmtree(place / "runs/torn_state/trees", ignore_errors=True)
    (place / "runs/torn_run/run.json").write_text('{"settings": ')
    (place / "runs/odd_run/run.json").write_text('{"settings": []}')
    (place / "runs/lost_run/run.json").unlink()
    about = json.loads((place / "runs/typed_run/run.json").read_text())
    about["settings"] |= {"max_steps": "many", "seed": None}
    (place / "runs/typed_run/run.json").write_text(json.dumps(about))
    (place / "runs/begun").mkdir()
    (place / "runs/busy").mkdir()
    shutil.copytree(TINY, place / "runs/sft")


def contents(place):
    """What lies in a folder: of each file and folder its name and what it holds."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(place.rglob("*"))
    }


def call_in_process(words, monkeypatch):
    """Exit code, output and errors of a command; code None: it was about to work."""
    out, err, code = io.StringIO(), io.StringIO(), None
    command, *argv = words
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *argv])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            COMMANDS[command].main()
        except SystemExit as stop:
            code = stop.code
        except Works:
            pass
    return code, out.getvalue(), err.getvalue()


class Works(BaseException):
    """A command was about to grow trees, or to train: nothing had kept it from that."""


def table(text):
    return [[part.strip() for part in line.split(" | ")] for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    fill(folder)
    return folder


def no_network(*args, **kwargs):
    raise AssertionError(f"looked for {args[0]} on a network")


@pytest.mark.slow
def test_each_wrong_call_gets_one_line_and_exit_code_2(place, monkeypatch):
    """Guards: tracebacks, nonsense that is accepted, files that a wrong call leaves or loses, paths taken for names."""

    def works(*args, **kwargs):
        raise Works

    box = tools.make_sandbox(train.read_flags([]))
    for module in (train, eval):
        monkeypatch.setattr(module, "make_sandbox", lambda config: box)
        monkeypatch.setattr(module, "judge", works)
    monkeypatch.setattr(train, "train_rl", works)
    monkeypatch.setattr(Policy, "grow", works)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(place)
    for key in ("SERPER_API_KEY", "BRAVE_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    calls, wrong = table(FLAGS) + table(DATA), []
    (place / "runs/busy/.lock").touch()
    before = contents(place)
    with (place / "runs/busy/.lock").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        for call, *words in calls:
            code, _, err = call_in_process(shlex.split(call), monkeypatch)
            now, line = contents(place), err.strip()
            missing = [word for word in words if word.lower() not in line.lower()]
            if code != 2 or "\n" in line or "Traceback" in line or missing or now != before:
                changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
                wrong.append((call, code, line[-300:], missing, sorted(changed)))
            before = contents(place)
    assert wrong == []
    assert len({call for call, *_ in calls}) >= 150


@pytest.mark.parametrize("call", table(FLAGS)[0:60:25] + table(DATA)[0:60:25])
def test_so_it_is_for_a_user(place, call):
    """The same in a process of its own, where nothing is replaced."""
    command, *argv = shlex.split(call[0])
    before = contents(place)
    done = subprocess.run([sys.executable, ROOT / f"{command}.py", *argv], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and contents(place) == before
    assert all(word.lower() in done.stderr.lower() for word in call[1:]), done.stderr
