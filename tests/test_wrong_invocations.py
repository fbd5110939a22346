"""Wrong calls of the commands: each gets one line that says what was expected and what was found, and exit code 2.

In a table a call stands over what its line must hold; "…" leaves something out. Calls are made from a folder that
`fill` fills. Nothing in it may be another afterwards, nothing new may lie in it, and nothing may be looked for on a
network. Most calls are made in this process, some as a user makes them.
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval
import tools
import train
from arpo import Policy
from data import runs
from data.models import TINY

ROOT = Path(__file__).parent.parent
COMMANDS = {"train": train, "eval": eval, "tools": tools}

# Flags and their values.
FLAGS = r"""
train --dry_run --threads -1
    --threads: expected at least 0, found -1
train --dry_run --save_steps 0
    --save_steps: expected at least 1, found 0
eval --ask "   "
    --ask: expected a question, or nothing for one of the world's, found ' '
eval --answer 4
    --answer: expected beside --ask, found --answer 4
eval --num_generations 8
    --num_generations: expected beside --ask, found --num_generations 8
eval --model model --branch_rule coin
    --branch_rule: expected beside --ask, found --model model --branch_rule coin
eval --width 80
    --width: expected beside --ask, found --width 80
eval --ask --samples 4
    --samples: expected without --ask, found --ask --samples 4
eval --ask "What is it?" --split dev
    --split: expected without --ask, found --ask What is it? --split dev
eval --compare
    --compare: expected folders with results, found none
eval --pass_k x
    --pass_k: expected other values, found ['x']
eval --temperature 0 --samples 3
    --samples: expected a --temperature above 0 to sample at, found 0
eval --ask --answer 4
    --answer: expected for a question without one, found
eval --html tree.html
    --html: expected beside --ask, found --html tree.html
eval --ask --html nowhere/tree.html
    --html nowhere/tree.html: expected a file in a folder that is there, found no folder nowhere
eval --ask --merge merged
    --merge: expected alone, since it answers nothing, found --ask
train --alog grpo
    expected flags and their values (--help lists them), found --alog, grpo (perhaps --algo?)
train --max_step 5
    expected flags and their values (--help lists them), found --max_step, 5 (perhaps --max_steps?)
train --learning-rat 1e-3
    expected flags and their values (--help lists them), found --learning_rat, 1e-3 (perhaps --learning_rate?)
train --num_gen 1
    expected flags and their values (--help lists them), found --num_gen, 1 (perhaps --num_generations?)
train --no_such_flag 1
    expected flags and their values (--help lists them), found --no_such_flag, 1
train --ask "What is it?"
    expected flags and their values (--help lists them), found --ask, What is it?
train --dry_run ""
    expected flags and their values (--help lists them), found
train grpo
    expected flags and their values (--help lists them), found grpo
train -seed 1
    expected flags and their values (--help lists them), found -seed, 1
train —seed 1
    expected flags and their values (--help lists them), found —seed, 1
train -- --seed 1
    expected flags and their values (--help lists them), found --seed, 1 (perhaps --seed?)
train --max_steps
    --max_steps: expected a value, found none
train --output_dir x --max_steps
    --max_steps: expected a value, found none
train --algo
    --algo: expected a value, found none
train --seed=
    --seed: expected a whole number, found ''
train --max_steps x
    --max_steps: expected a whole number, found 'x'
train --max_steps 1.5
    --max_steps: expected a whole number, found '1.5'
train --max_steps 1e3
    --max_steps: expected a whole number, found '1e3'
train --max_steps 0
    --max_steps: expected at least 1, found 0
train --max_steps -3
    --max_steps: expected at least 1, found -3
train --max_steps 1 2
    expected flags and their values (--help lists them), found 2
train --seed -1
    --seed: expected at least 0, found -1
train --temperature x
    --temperature: expected a number, found 'x'
train --temperature 0,5
    --temperature: expected a number, found '0,5'
train --temperature -1
    --temperature: expected at least 0, found -1.0
train --temperature 0
    --temperature: expected above 0 in training, where leaves must differ, found 0
train --learning_rate nan
    --learning_rate: expected a finite number, found nan
train --learning_rate inf
    --learning_rate: expected a finite number, found inf
train --learning_rate -1e-5
    --learning_rate: expected at least 0, found -1e-05
train --learning_rate 50
    --learning_rate: expected at most 1, found 50.0
train --sft_learning_rate 3
    --sft_learning_rate: expected at most 1, found 3.0
train --epsilon_high -0.2
    --epsilon_high: expected at least 0, found -0.2
train --entropy_weight nan
    --entropy_weight: expected a finite number, found nan
train --kl_coef -1
    --kl_coef: expected at least 0, found -1.0
train --max_grad_norm 0
    --max_grad_norm: expected at least 1e-06, found 0.0
train --weight_decay -0.1
    --weight_decay: expected at least 0, found -0.1
train --warmup_steps -1
    --warmup_steps: expected at least 0, found -1
train --python_seconds 0
    --python_seconds: expected at least 1, found 0.0
train --reward_bonus -1
    --reward_bonus: expected at least 0, found -1.0
train --dynamic_sampling yes
    expected flags and their values (--help lists them), found yes
train --dynamic_sampling=yes
    expected flags and their values (--help lists them), found yes
train --load_in_4bit maybe
    expected flags and their values (--help lists them), found maybe
train --algo ppo
    --algo: expected one of 'arpo', 'random', 'grpo', … , found 'ppo'
train --preset deepsearch
    --preset: expected one of '', 'reasoning', … , found 'deepsearch'
train --stage dpo
    --stage: expected one of 'rl', 'sft', found 'dpo'
train --branch_rule dice
    --branch_rule: expected one of 'threshold', 'coin', 'best', found 'dice'
train --loss_type ppo
    --loss_type: expected one of 'token_mean', 'sequence_mean', 'constant', found 'ppo'
train --optim sgd
    --optim: expected one of 'adamw', 'adamw_8bit', 'paged_adamw_8bit', found 'sgd'
train --lr_scheduler_type linear
    --lr_scheduler_type: expected one of 'cosine', 'constant', found 'linear'
train --report_to mlflow
    --report_to: expected one of 'none', 'tensorboard', 'wandb', 'trackio', found 'mlflow'
train --metric bleu
    --metric: expected one of '', 'em', 'f1', 'math', 'gaia', found 'bleu'
train --cache_mode off
    --cache_mode: expected one of 'online', 'offline', 'refresh', found 'off'
train --tool_limits knife=1
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found 'knife=1'
train --tool_limits search=x
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found 'search=x'
train --tool_limits 3
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found '3'
train --tool_limits search=3;python=5
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found 'search=3;python=5'
train --tool_limits python=1,python=2
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found 'python=1,python=2'
train --tool_limits python=²
    --tool_limits: expected such as "search=3,python=5" with python, search, browse, found 'python=²'
train --python_seconds 1e12
    --python_seconds: expected at most 3,600, found 1000000000000.0
eval --count 1000000
    --count: expected at most 100,000, found 1000000
train --num_generations 1
    num_initial (N) must be from 1 to num_generations (M = 1), or 0 for M; found 4
train --num_generations 4 --num_initial 5
    num_initial (N) must be from 1 to num_generations (M = 4), or 0 for M; found 5
train --algo grpo --num_initial 2
    --algo grpo: expected all leaves to start from the prompt, found --num_initial 2 of 8
train --num_minibatches 13
    --num_minibatches: expected at most --questions_per_step 12, found 13
eval --samples 0
    --samples: expected at least 1, found 0
eval --pass_k 1 9
    --pass_k: expected from 1 to --samples 5, found 9
eval --samples 2 --pass_k 0
    --pass_k: expected from 1 to --samples 2, found 0
eval --table paper
    --table: expected beside --compare, whose results it shows, found alone
eval --compare absent model
    absent: expected a folder with results.json, or such a file, found none
eval --ask --compare absent
    --compare: expected without --ask, found --ask --compare absent
train --dry_run --top_p 0.9
    --top_p: expected 1 in training, which learns from all that was likely, found 0.9
eval --samples 8.0
    --samples: expected a whole number, found '8.0'
eval --count -5
    --count: expected at least 1, found -5
eval --width 0
    --width: expected at least 1, found 0
eval --split validation
    --split: expected one of 'all', 'train', 'dev', 'test', found 'validation'
eval --modle model
    expected flags and their values (--help lists them), found --modle, model (perhaps --model?)
eval --max_steps 5
    expected flags and their values (--help lists them), found --max_steps, 5
eval --algo grpo
    expected flags and their values (--help lists them), found --algo, grpo
eval --ask --answer
    --answer: expected a value, found none
eval --ask --num_generations 2 --num_initial 3
    num_initial (N) must be from 1 to num_generations (M = 2), or 0 for M; found 3
eval --ask --ask What is it?
    --ask: expected once, found 2 times
eval --ask What is it?
    expected flags and their values (--help lists them), found is, it?
eval "What is it?"
    expected flags and their values (--help lists them), found What is it?
eval --temperature nan
    --temperature: expected a finite number, found nan
train --max_steps 5 --max_steps 6
    --max_steps: expected once, found 2 times
train --max_steps 5 --max-steps=6
    --max_steps: expected once, found 2 times
train --browse --no_browse
    --browse: expected once, found 2 times
train --beta 0.1 --kl_coef 0.1
    --kl_coef: expected once, found 2 times
eval --model model --model tiny
    --model: expected once, found 2 times
train --epsilon 3
    --epsilon: expected at most 1, found 3.0
train --base_prob 5
    --base_prob: expected at most 1, found 5.0
train --threshold -0.5
    --threshold: expected at least 0, found -0.5
train --seed 99999999999999999999
    --seed: expected at most 2,147,483,647, found 99999999999999999999
eval --samples 3000000000
    --samples: expected at most 2,147,483,647, found 3000000000
train --threads 100000
    --threads: expected at most 8, four for each core, found 100000
"""

# Questions and conversations.
DATA = r"""
train --dry_run --data trail
    unknown data 'trail': expected world, trails, … did you mean trails?
train --dry_run --data absent.jsonl
    absent.jsonl: expected a file, found no such file
train --dry_run --data goot.jsonl
    goot.jsonl: expected a file, found no such file; did you mean good.jsonl?
train --dry_run --data ./absent
    ./absent: expected a file, found no such file
train --dry_run --data nowhere/absent.jsonl
    nowhere/absent.jsonl: expected a file, found no such file
train --dry_run --data ~no_such_user/questions.jsonl
    ~no_such_user/questions.jsonl: expected a file, found no such file
train --dry_run --data few.jsonl
    few.jsonl: expected at least 10 questions to train, choose and test on, found 3
train --dry_run --data same.jsonl
    same.jsonl: expected at least 10 questions to train, choose and test on, found 1 different ones
train --dry_run --data empty.jsonl
    empty.jsonl: expected questions, found no questions in this file
train --dry_run --data blank.jsonl
    blank.jsonl: expected questions, found no questions in this file
train --dry_run --data torn.jsonl
    torn.jsonl, line 1: expected JSON, found none (Expecting ',' delimiter: line 1 column 48 (char 47)); 6 of 20 …
train --dry_run --data numbers.jsonl
    numbers.jsonl, line 1: expected an object, found int; 3 of 3 rows are bad
train --dry_run --data arrays.jsonl
    arrays.jsonl, line 1: expected an object, found list (an array of rows is named .json); 2 of 2 rows are bad
train --dry_run --data spread.jsonl
    spread.jsonl: expected an object on each line, found one over several; an array is named .json
train --dry_run --data keys.jsonl
    keys.jsonl, line 1: expected a text under one of … , found None; the row has q, a; 20 of 20 rows are bad
train --dry_run --data images.jsonl
    images.jsonl: expected questions, found no questions in this file
train --dry_run --data lines.json
    lines.json, read as JSON: expected JSON, found none (Extra data: line 2 column 1 (char 49)); lines of JSON …
train --dry_run --data object.json
    object.json, read as JSON: expected an array, found dict with a list under rows: save that alone
train --dry_run --data text.json
    text.json, read as JSON: expected an array, found str
train --dry_run --data torn.json
    torn.json, read as JSON: expected JSON, found none (Unterminated string starting at: line 1 column 1016 (char …
train --dry_run --data wide.csv
    wide.csv, row 1: expected 2 values as in the heading, found more: ['2', '3']
train --dry_run --data quote.csv
    quote.csv, read as CSV: expected rows between quotes that close, found unexpected end of data
train --dry_run --data other.csv
    other.csv, row 1: expected a text under one of … , found None; the row has a, b
train --dry_run --data latin.csv
    latin.csv, read as CSV: expected text in UTF-8, found the byte 0xf6 at 24
train --dry_run --data text.parquet
    text.parquet: expected parquet, found not a whole parquet file (…
train --dry_run --data words.txt
    words.txt: expected a file that ends in .json, .jsonl, .parquet, .csv, .tsv, found another: unpack or convert it
train --dry_run --data packed.jsonl.gz
    packed.jsonl.gz: expected a file that ends in … , found another: unpack or convert it
train --dry_run --data packed.jsonl
    packed.jsonl, line 1: expected text in UTF-8, found the byte 0x8b at 1
train --dry_run --data folder.jsonl
    folder.jsonl: expected a file, found a folder
train --dry_run --data .
    .: expected a file, found a folder
train --dry_run --data runs/
    runs/: expected a file, found a folder
train --dry_run --data hollow.jsonl
    hollow.jsonl: expected answers to train and test on, found none in 12 questions
train --dry_run --stage sft --sft_data called.jsonl
    expected conversations to learn from, found no usable row in called.jsonl: 12 of 12 rows skipped (calls in too
train --dry_run --data gsm9k
    unknown data 'gsm9k': expected world, trails, aime24, aime25, math500, gsm8k, math, webwalker, hotpotqa, …
train --dry_run --data ""
    unknown data '': expected world, trails, aime24, aime25, math500, gsm8k, math, webwalker, hotpotqa, 2wiki, …
train --dry_run --data world=-1
    --data: expected one source, or name=weight,name=weight with weights above 0, found world=-1
train --dry_run --data world=0
    --data: expected one source, or name=weight,name=weight with weights above 0, found world=0
train --dry_run --data world=0.3,gsm8k
    --data: expected one source, or name=weight,name=weight with weights above 0, found world=0.3,gsm8k
train --dry_run --data world=0.5,absent.jsonl=0.5
    absent.jsonl: expected a file, found no such file
train --dry_run --data world=0.5,=0.5
    --data: expected one source, or name=weight,name=weight with weights above 0, found world=0.5,=0.5
train --dry_run --data world=x
    --data: expected one source, or name=weight,name=weight with weights above 0, found world=x
train --dry_run --data aime24
    aime24: expected a set with training questions, found one that is a test alone
train --dry_run --stage sft --sft_data absent.jsonl
    absent.jsonl: expected a file, found no such file
train --dry_run --stage sft --sft_data chat.jsonl
    chat.jsonl, line 1: expected conversations, messages, output or combined_text, found chat
train --dry_run --stage sft --sft_data roles.jsonl
    roles.jsonl, line 1: expected a text of human, … , found 'hello' of 'wizard'
train --dry_run --stage sft --sft_data empty.jsonl
    empty.jsonl: expected conversations, found none in it
train --dry_run --stage sft --sft_data words.txt
    words.txt: expected a file that ends in .json, .jsonl, .parquet, .csv, .tsv, found another: unpack or convert it
train --dry_run --sft_data absent.jsonl
    absent.jsonl: expected a file, found no such file
train --dry_run --sft_data talk.jsonl --no_cold_start
    --sft_data talk.jsonl: expected a cold start to learn from it, found none
train --dry_run --cold_start --sft_data numbers.jsonl
    numbers.jsonl, line 1: expected an object, found int
train --data few.jsonl
    few.jsonl: expected at least 10 questions to train, choose and test on, found 3
eval --data absent.jsonl
    absent.jsonl: expected a file, found no such file
eval --data empty.jsonl
    empty.jsonl: expected questions, found no questions in this file
eval --data words.txt
    words.txt: expected a file that ends in .json, .jsonl, .parquet, .csv, .tsv, found another: unpack or convert it
eval --data few.jsonl --split dev
    few.jsonl: expected at least 10 questions to train, choose and test on, found 3
eval --data gsm9k
    unknown data 'gsm9k': expected world, trails, aime24, aime25, math500, gsm8k, math, webwalker, hotpotqa, …
eval --data aime24 --split train
    aime24: expected a set with training questions, found one that is a test alone
"""

# Where to search.
SEARCH = r"""
train --dry_run --search google
    expected a corpus (.jsonl) or its index (.db) to search in, found 'google'
train --dry_run --search absent.jsonl
    absent.jsonl: expected a corpus or its index to search in, found no such file
train --dry_run --search absent.db
    absent.db: expected a corpus or its index to search in, found no such file
train --dry_run --search words.txt
    expected a corpus (.jsonl) or its index (.db) to search in, found 'words.txt'
train --dry_run --search words.db
    words.db: expected an index of passages, found an empty corpus, no index of one, or of another version
train --dry_run --search other.db
    other.db: expected an index of passages, found an empty corpus, no index of one, or of another version
train --dry_run --search other.jsonl
    other.db: expected an index of passages or no such file, found something else: move it away
train --dry_run --search theirs.db
    theirs.db: expected an index of passages, found an empty corpus, no index of one, or of another version
train --dry_run --search empty.jsonl
    empty.jsonl: expected passages on its lines, found an empty corpus
train --dry_run --search textless.jsonl
    textless.jsonl, line 1: expected title and text … , found {"title": "Paris", "body_of_text": "The capital of
train --dry_run --search titles.jsonl
    titles.jsonl: expected one title for an address, found that pages of several titles have the address 'a': …
train --dry_run --search torn.jsonl
    torn.jsonl, line 1: expected JSON in UTF-8 … , found {"question": "What is 0 plus 1?", "answer": "1"\n
train --dry_run --search packed.jsonl
    packed.jsonl, line 1: expected JSON in UTF-8 … , found
train --dry_run --search folder.jsonl
    folder.jsonl: expected a corpus or its index to search in, found a folder
train --dry_run --search .
    expected a corpus (.jsonl) or its index (.db) to search in, found '.'
train --dry_run --search serper
    --search serper: expected the environment variable SERPER_API_KEY, found no key
train --dry_run --search serper --web_cache fresh.db
    --search serper: expected the environment variable SERPER_API_KEY, found no key
train --dry_run --search brave
    --search brave: expected the environment variable BRAVE_API_KEY, found no key
train --dry_run --search serper --web_cache words.db --cache_mode offline
    words.db: expected a file where answers can be kept, found that they cannot be kept (file is not a database)
train --dry_run --search serper --web_cache other.db --cache_mode offline
    other.db: expected a cache of answers or a new file, found the table t
train --dry_run --search serper --web_cache answers.db --cache_mode offline
    answers.db: expected a cache of answers or a new file, found the table answers
train --dry_run --search serper --web_cache nowhere/cache.db --cache_mode offline
    --cache_mode offline: expected a cache file (--web_cache), found none at 'nowhere/cache.db'
train --dry_run --search serper --web_cache runs --cache_mode offline
    --cache_mode offline: expected a cache file (--web_cache), found none at 'runs'
train --dry_run --search serper --web_cache absent.db --cache_mode offline
    --cache_mode offline: expected a cache file (--web_cache), found none at 'absent.db'
train --dry_run --reader ftp://localhost
    --reader ftp://localhost --reader_model '': only addresses such as https://host/page are opened, without a …
train --dry_run --reader base --search none
    --reader: expected pages to read (--search, --browse), found none with base
train --dry_run --reader_model small
    --reader_model: expected beside the URL of a --reader, found small alone
train --dry_run --cache_mode offline
    --cache_mode offline: expected the live web, found search in no such place
train --dry_run --reader basic
    --reader basic --reader_model '': only addresses such as https://host/page are opened, without a user name or …
train --data good.jsonl --search nowhere.jsonl
    nowhere.jsonl: expected a corpus or its index to search in, found no such file
eval --search google
    expected a corpus (.jsonl) or its index (.db) to search in, found 'google'
eval --search words.db
    words.db: expected an index of passages, found an empty corpus, no index of one, or of another version
eval --search serper
    --search serper: expected the environment variable SERPER_API_KEY, found no key
eval --ask --search absent.jsonl
    absent.jsonl: expected a corpus or its index to search in, found no such file
"""

# Models.
MODELS = r"""
eval --model run/finished
    --model run/finished: expected a folder, found none (perhaps runs/finished?)
train --dry_run --model absent/
    --model absent/: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model runs/absent
    --model runs/absent: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model runs/finisht
    --model runs/finisht: expected a folder with a … , found none (perhaps runs/finished?)
train --dry_run --model ./absent
    --model ./absent: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model ~/absent_model
    --model ~/absent_model: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model /nowhere/model
    --model /nowhere/model: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model a/b/c
    --model a/b/c: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model ""
    --model .: expected a model's folder with adapter_config.json or config.json, found neither
train --dry_run --model "two words"
    --model two words: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model void
    --model void: expected a model's folder with adapter_config.json or config.json, found neither
train --dry_run --model runs/begun
    --model runs/begun: expected a model's folder with adapter_config.json or config.json, found neither
train --dry_run --model words.txt
    --model words.txt: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model absent.gguf
    --model absent.gguf: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model model.safetensors
    --model model.safetensors: expected a folder with a model, a .gguf file or a hub id, found none
train --dry_run --model torn_config
    torn_config/config.json: expected JSON, found Expecting value: line 1 column 16 (char 15)
train --dry_run --model odd_config
    --model odd_config: expected weights beside config.json, found none
train --dry_run --model list_config
    list_config/config.json: expected an object, found list
train --dry_run --model no_weights
    --model no_weights: expected weights beside config.json, found none
train --dry_run --model lost_adapter
    expected the base model of the adapter in lost_adapter at /nowhere/base, found no folder there
train --dry_run --model torn_adapter
    torn_adapter/adapter_config.json: expected JSON, found Expecting property name enclosed in double quotes: …
train --dry_run --model vain_adapter
    vain_adapter/adapter_config.json: expected the base model under base_model_name_or_path, found None
train --dry_run --model runs/torn_run
    runs/torn_run/run.json: expected the settings of … , found Expecting value: line 1 column 14 (char 13)
train --dry_run --model runs/odd_run
    runs/odd_run/run.json: expected the settings of a run as JSON, found other settings
train --dry_run --model runs/typed_run
    --model runs/typed_run: expected a model's folder with adapter_config.json or config.json, found neither
train --dry_run --model torn_weights
    cannot load the model in torn_weights: expected a … , found: Error while deserializing header: header too larg
train --dry_run --model cut
    cannot load the model in cut: expected a … , found: Error while deserializing header: incomplete metadata, …
train --dry_run --model holed
    cannot load the model in holed: expected … expected weights for all of its layers, found none for 1: model.lay
train --dry_run --model bent
    cannot load the model in bent: … q_proj.weight of shape (128, 128), as config.json has it, found (3, 128)
train --dry_run --model mute
    cannot load the model in mute: expected a whole … , found none that knows a word
train --dry_run --stage sft --model cut
    cannot load the model in cut: expected a … , found: Error while deserializing header: incomplete metadata, …
train --model cut
    cannot load the model in cut: expected a … , found: Error while deserializing header: incomplete metadata, …
train --model holed
    cannot load the model in holed: expected … expected weights for all of its layers, found none for 1: model.lay
eval --model holed
    cannot load the model in holed: expected … expected weights for all of its layers, found none for 1: model.lay
eval --ask --model bent
    cannot load the model in bent: … q_proj.weight of shape (128, 128), as config.json has it, found (3, 128)
train --dry_run --model bent_config
    bent_config/config.json: expected a model's configuration, found … `num_hidden_layers` (9) must be equal to the
train --dry_run --model torn_bin
    cannot load the model in torn_bin: expected a whole … , found: a .bin file that holds no tensors
train --dry_run --model bare_adapter
    --model bare_adapter: expected weights beside adapter_config.json, found none
train --model void
    --model void: expected a model's folder with adapter_config.json or config.json, found neither
train --model torn_weights --overwrite --output_dir runs/unfinished
    cannot load the model in torn_weights: expected a … , found: Error while deserializing header: header too larg
train --model torn_weights
    cannot load the model in torn_weights: expected a … , found: Error while deserializing header: header too larg
train --model no_weights
    --model no_weights: expected weights beside config.json, found none
train --model mute
    cannot load the model in mute: expected a whole … , found none that knows a word
train --stage sft --sft_data roles.jsonl --model model
    roles.jsonl, line 1: expected a text of human, … , found 'hello' of 'wizard'
train --stage sft --sft_data talk.jsonl --model model
    expected conversations to learn from, found no usable row in talk.jsonl: 12 of 12 rows skipped (format 12; …
eval --model absent/
    --model absent/: expected a folder with a model, a .gguf file or a hub id, found none
eval --model runs/absent
    --model runs/absent: expected a folder with a model, a .gguf file or a hub id, found none
eval --model void
    --model void: expected a model's folder with adapter_config.json or config.json, found neither
eval --model words.txt
    --model words.txt: expected a folder with a model, a .gguf file or a hub id, found none
eval --model torn_weights
    cannot load the model in torn_weights: expected a … , found: Error while deserializing header: header too larg
eval --model mute
    cannot load the model in mute: expected a whole … , found none that knows a word
eval --model lost_adapter
    expected the base model of the adapter in lost_adapter at /nowhere/base, found no folder there
eval --model torn_adapter
    torn_adapter/adapter_config.json: expected JSON, found Expecting property name enclosed in double quotes: …
eval --model runs/torn_run
    runs/torn_run/run.json: expected the settings of … , found Expecting value: line 1 column 14 (char 13)
eval --model runs/typed_run
    --model runs/typed_run: expected a model's folder with adapter_config.json or config.json, found neither
eval --ask --model absent/
    --model absent/: expected a folder with a model, a .gguf file or a hub id, found none
"""

# Folders of runs.
RUNS = r"""
train --dry_run --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
train --dry_run --output_dir taken/run
    --output_dir taken/run: expected a folder, found a file (taken)
train --dry_run --output_dir runs/finished
    --output_dir runs/finished: expected a new folder, found a finished run: --overwrite replaces it, …
train --dry_run --output_dir runs/unfinished
    --output_dir runs/unfinished: expected a new folder, found an unfinished run: --resume auto goes on, …
train --dry_run --output_dir runs/sft
    --output_dir runs/sft: expected a run's folder or … , found config.json but no run.json, which a run would rep
train --dry_run --output_dir model
    --output_dir model: expected a new folder, found a model after SFT: --overwrite replaces it, --output_dir …
train --dry_run --stage sft --output_dir model
    --output_dir model: expected a new folder, found a model after SFT: --overwrite replaces it, --output_dir …
train --dry_run --overwrite --output_dir runs/unfinished --model runs/unfinished/checkpoints/step_000003
    --model runs/unfinished/checkpoints/step_000003: … , found neither
train --dry_run --overwrite --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
train --dry_run --resume runs/absent
    --resume runs/absent: expected a run's folder with checkpoints, found none in it
train --dry_run --resume runs/begun
    --resume runs/begun: expected a run's folder with checkpoints, found none in it
train --dry_run --resume taken
    --resume taken: expected a run's folder with checkpoints, found none in it
train --dry_run --resume runs/torn_run
    runs/torn_run/run.json: expected the settings of … , found Expecting value: line 1 column 14 (char 13)
train --dry_run --resume runs/odd_run
    runs/odd_run/run.json: expected the settings of a run as JSON, found other settings
train --dry_run --resume runs/lost_run
    --resume: expected a run's settings in runs/lost_run/run.json, found no such file
train --dry_run --resume runs/typed_run
    --seed: expected a number, found None
train --dry_run --resume runs/unfinished --algo grpo
    --resume: expected the run's own --algo arpo, found grpo
train --dry_run --resume runs/unfinished --optim adamw_8bit
    --resume: expected the run's own --optim adamw, found adamw_8bit
train --dry_run --resume runs/unfinished --output_dir runs/elsewhere
    --output_dir: expected the run to go on in its own folder runs/unfinished, found runs/elsewhere
train --dry_run --resume runs/torn_state
    expected a checkpoint in runs/torn_state/checkpoints, found none that can be read
train --dry_run --resume runs/list_state
    expected a checkpoint in runs/list_state/checkpoints, found none that can be read
train --dry_run --resume auto --output_dir runs/torn_state
    expected a checkpoint in runs/torn_state/checkpoints, found none that can be read
train --dry_run --resume runs/short_run
    expected a checkpoint in runs/short_run/checkpoints, found none that can be read
train --dry_run --resume runs/deaf_run
    expected a checkpoint in runs/deaf_run/checkpoints, found none that can be read
train --dry_run --resume runs/unfinished --max_steps 2
    --max_steps: expected at least the 3 that are done, found 2
train --dry_run --resume runs/half_state
    expected a checkpoint in runs/half_state/checkpoints, found none that can be read
train --dry_run --model runs/odd_size
    runs/odd_size/run.json: expected a size out of … , found giant
train --dry_run --resume runs/unfinished --max_steps 0
    --max_steps: expected at least 1, found 0
train --dry_run --resume auto --output_dir runs/lost_run
    --resume: expected a run's settings in runs/lost_run/run.json, found no such file
train --dry_run --resume auto --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
train --dry_run --resume
    --resume: expected a value, found none
train --dry_run --stage sft --resume runs/unfinished
    --resume: expected the run's own --stage rl, found sft
train --model torn_config --overwrite --output_dir runs/unfinished
    torn_config/config.json: expected JSON, found Expecting value: line 1 column 16 (char 15)
train --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
train --output_dir runs/finished
    --output_dir runs/finished: expected a new folder, found a finished run: --overwrite replaces it, …
train --output_dir runs/unfinished
    --output_dir runs/unfinished: expected a new folder, found an unfinished run: --resume auto goes on, …
train --output_dir runs/busy
    expected runs/busy for this run alone, found another run that writes to it
train --output_dir model
    --output_dir model: expected a new folder, found a model after SFT: --overwrite replaces it, --output_dir …
train --stage sft --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
train --resume runs/torn_state
    expected a checkpoint in runs/torn_state/checkpoints, found none that can be read
train --resume runs/lost_run
    --resume: expected a run's settings in runs/lost_run/run.json, found no such file
eval --output_dir taken
    --output_dir taken: expected a folder, found a file (taken)
eval --output_dir runs/finished
    --output_dir runs/finished: expected an evaluation's folder or a new one, found one with run.json
eval --output_dir torn_weights --model model
    --output_dir torn_weights: expected an evaluation's folder or a new one, found one with config.json
eval --merge merged
    --merge: expected an adapter's folder (adapter_config.json) as --model, found tiny
eval --merge merged --model model
    --merge: expected an adapter's folder (adapter_config.json) as --model, found model
eval --merge taken --model lost_adapter
    --merge taken: expected a folder, found a file (taken)
eval --merge taken/merged --model lost_adapter
    --merge taken/merged: expected a folder, found a file (taken)
eval --merge model --model vain_adapter
    --merge model: expected a new or empty folder, found something there
train --dry_run --stage sft --output_dir runs/finished
    --output_dir runs/finished: expected a new folder, found a finished run: --overwrite replaces it, …
train --stage sft --output_dir runs/finished
    --output_dir runs/finished: expected a new folder, found a finished run: --overwrite replaces it, …
train --stage sft --output_dir model --sft_data chat.jsonl
    --output_dir model: expected a new folder, found a model after SFT: --overwrite replaces it, --output_dir …
"""

# Corpora and caches.
TOOLS = r"""
tools
    expected index corpus.jsonl, or import answers.json cache.db [kind], found no command
tools --help-me
    expected index corpus.jsonl, or import answers.json cache.db [kind], found --help-me
tools index
    expected index corpus.jsonl, or import answers.json cache.db [kind], found index
tools index absent.jsonl
    absent.jsonl: expected a corpus to index (.jsonl), found no such file
tools index empty.jsonl
    empty.jsonl: expected passages on its lines, found an empty corpus
tools index textless.jsonl
    textless.jsonl, line 1: expected title and text … , found {"title": "Paris", "body_of_text": "The capital of
tools index titles.jsonl
    titles.jsonl: expected one title for an address, found that pages of several titles have the address 'a': …
tools index torn.jsonl
    torn.jsonl, line 1: expected JSON in UTF-8 … , found {"question": "What is 0 plus 1?", "answer": "1"\n
tools index packed.jsonl
    packed.jsonl, line 1: expected JSON in UTF-8 … , found
tools index words.txt
    words.txt: expected a corpus to index (.jsonl), found a file of another name
tools index words.db
    words.db: expected a corpus to index (.jsonl), found a file of another name
tools index other.jsonl
    other.db: expected an index of passages or no such file, found something else: move it away
tools index theirs.jsonl
    theirs.db: expected an index of passages or no such file, found something else: move it away
tools index words.jsonl
    words.db: expected an index of passages or no such file, found something else: move it away
tools index folder.jsonl
    folder.jsonl: expected a corpus to index (.jsonl), found a folder
tools index .
    .: expected a corpus to index (.jsonl), found a folder
tools index corpus.jsonl good.jsonl
    expected index corpus.jsonl, or import answers.json cache.db [kind], found index corpus.jsonl good.jsonl
tools index --corpus corpus.jsonl
    expected index corpus.jsonl, or import answers.json cache.db [kind], found index --corpus corpus.jsonl
tools import
    expected index corpus.jsonl, or import answers.json cache.db [kind], found import
tools import answers.json
    expected index corpus.jsonl, or import answers.json cache.db [kind], found import answers.json
tools import absent.json cache.db
    absent.json: expected a file, found no such file
tools import torn.answers cache.db
    torn.answers: expected an object of queries and … , found Unterminated string starting at: line 1 column 2 (
tools import deep.json cache.db
    deep.json: expected an object of queries and texts as JSON, found maximum recursion depth exceeded
tools import answers.json ""
    expected a file where answers can be kept, found ''
tools import answers.json :memory:
    expected a file where answers can be kept, found ':memory:'
tools import answers.json cache.db serper
    expected a kind such as "search serper 3" or "page", found 'serper'
tools import list.json cache.db
    list.json: expected an object of queries and texts, found list
tools import nested.json cache.db
    nested.json: expected a text as the answer to 'who is it', found {'a': 1}
tools import text.json cache.db
    text.json: expected an object of queries and texts, found str
tools import answers.json words.db
    words.db: expected a file where answers can be kept, found that they cannot be kept (file is not a database)
tools import answers.json other.db
    other.db: expected a cache of answers or a new file, found the table t
tools import answers.json theirs.db
    theirs.db: expected a cache of answers or a new file, found the table passages
tools import answers.json answers.db
    answers.db: expected a cache of answers or a new file, found the table answers
tools import answers.json nowhere/cache.db
    nowhere/cache.db: expected a file where answers … , found that they cannot be kept (unable to open database
tools import answers.json runs
    runs: expected a file where answers can be kept, found that they cannot be kept (unable to open database file)
tools import answers.json cache.db "search serper 3" more
    expected index corpus.jsonl, or import … , found import answers.json cache.db search serper 3 more
tools import folder.jsonl cache.db
    folder.jsonl: expected a file, found a folder
tools export answers.json
    expected index corpus.jsonl, or import answers.json cache.db [kind], found export answers.json
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
        "hollow.jsonl": lines([row | {"answer": ""} for row in rows(12)]),
        "called.jsonl": lines([{"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}] * 12),
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
        "deep.json": '{"a":' * 100_000,
        "taken": "a file, and no folder",
        "fake.gguf": "no model",
        "model.safetensors": "no model",
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    (place / "packed.jsonl.gz").write_bytes(gzip.compress(lines(rows(20)).encode(), mtime=0))
    (place / "packed.jsonl").write_bytes(gzip.compress(lines(rows(20)).encode(), mtime=0))
    (place / "latin.csv").write_bytes("question,answer\nWo ist Köln?,am Rhein\n".encode("latin-1"))
    (place / "folder.jsonl").mkdir()
    for name, table in {"other.db": "t (x)", "theirs.db": "passages (x)", "answers.db": "answers (x)"}.items():
        with contextlib.closing(sqlite3.connect(place / name)) as db:
            db.execute(f"CREATE TABLE {table}")
    for name in ("other", "theirs", "words"):
        shutil.copy(place / "corpus.jsonl", place / f"{name}.jsonl")
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
        "bent_config": {"config.json": config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 9')}
        | {"model.safetensors": ""},
        "torn_bin": {"config.json": config, "pytorch_model.bin": "no weights"},
        "bare_adapter": {"adapter_config.json": json.dumps({"base_model_name_or_path": str(TINY)})},
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
    weights = load_file(TINY / "model.safetensors")
    query = "model.layers.0.self_attn.q_proj.weight"
    others = {
        "holed": {name: weight for name, weight in weights.items() if name != query},
        "bent": weights | {query: weights[query][:3].contiguous()},
    }
    for name, tensors in others.items():
        shutil.copytree(TINY, place / name)
        save_file(tensors, place / name / "model.safetensors", {"format": "pt"})
    shutil.copytree(TINY, place / "cut")
    os.truncate(place / "cut/model.safetensors", 1_000_000)


def fill_runs(place):
    names = "finished unfinished torn_state list_state half_state short_run deaf_run torn_run lost_run typed_run"
    for name in [*names.split(), "odd_size", "odd_run"]:
        folder = place / "runs" / name
        (folder / "checkpoints/step_000003").mkdir(parents=True)
        torch.save(dict.fromkeys(runs.STATE, 0) | {"metrics_bytes": 12}, folder / "checkpoints/step_000003/state.pt")
        config = train.read_flags(["--output_dir", str(folder)])
        runs.write_about(folder, config, "tiny")
        (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    (place / "runs/torn_state/checkpoints/step_000003/state.pt").write_text("no checkpoint")
    torch.save({"metrics_bytes": 0}, place / "runs/half_state/checkpoints/step_000003/state.pt")
    torch.save(["no state"], place / "runs/list_state/checkpoints/step_000003/state.pt")
    (place / "runs/short_run/metrics.jsonl").write_text('{"step"')
    (place / "runs/deaf_run/metrics.jsonl").unlink()
    (place / "runs/finished/table.txt").write_text("a table")
    (place / "runs/torn_run/run.json").write_text('{"settings": ')
    (place / "runs/odd_run/run.json").write_text('{"settings": []}')
    (place / "runs/lost_run/run.json").unlink()
    runs.write_about(place / "runs/odd_size", train.read_flags([]), "giant")
    about = json.loads((place / "runs/typed_run/run.json").read_text())
    about["settings"] |= {"max_steps": "many", "seed": None}
    (place / "runs/typed_run/run.json").write_text(json.dumps(about))
    (place / "runs/begun").mkdir()
    (place / "runs/busy").mkdir()
    for folder in (place / "runs").iterdir():
        (folder / ".lock").touch()
    (place / "runs/sft").mkdir()
    shutil.copy(TINY / "config.json", place / "runs/sft")


def contents(place):
    """What lies in a folder: of each file and folder its name and what it holds."""
    return {
        str(path.relative_to(place)): digest(path, path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        if path.is_file()
        else "folder"
        for path in sorted(place.rglob("*"))
    }


@cache
def digest(path, *_written):
    """Computed again where a file has been written since."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


TABLES = [FLAGS, DATA, SEARCH, MODELS, RUNS, TOOLS]
CALLS = [pair for table in TABLES for pair in zip(*[iter(table.strip().splitlines())] * 2)]


def test_there_are_at_least_150_different_wrong_calls():
    assert len({call for call, _ in CALLS}) == len(CALLS) >= 150


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    fill(folder)
    with (folder / "runs/busy/.lock").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        yield folder
    runs.LOCKS.clear()


@pytest.fixture(scope="module")
def before(place):
    return contents(place)


@pytest.fixture(scope="module")
def sandbox():
    with contextlib.closing(tools.make_sandbox(train.read_flags([]))) as one:
        yield one


def works(*args, **kwargs):
    raise Works


@pytest.fixture
def outside(place, sandbox, monkeypatch):
    """The place as working folder, one sandbox for all calls, no keys, and the addresses that were looked for."""
    monkeypatch.chdir(place)
    for key in ("SERPER_API_KEY", "BRAVE_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    for module, name in ((Policy, "grow"), (train, "train_rl"), (train, "train_sft")):
        monkeypatch.setattr(module, name, works)
    for command in (train, eval):
        monkeypatch.setattr(command, "make_sandbox", lambda config: sandbox)
    looked_for = []

    def look(host, *args, **kwargs):
        looked_for.append(host)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return looked_for


def holds(said, words):
    """Whether a text holds the words, those around each "…" in this order."""
    at = 0
    for part in words.split("…"):
        at = said.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True


def the_error(command, err):
    """The one line of an error; what was told before it, of files that were read, is no error."""
    *told, line = err.splitlines()
    assert "Traceback" not in err and not any("error:" in before for before in told), err
    assert line.startswith(f"{command}.py: error: ")
    return line


@pytest.mark.parametrize("call, words", CALLS, ids=[call for call, _ in CALLS])
def test_a_wrong_call_gets_one_line_and_costs_nothing(place, before, outside, monkeypatch, call, words):
    """Guards: tracebacks, exit codes of success, folders left behind, runs and models that are written over."""
    code, _, err = call_in_process(shlex.split(call), monkeypatch)
    assert code == 2, f"{code}: {err}"
    assert holds(the_error(call.split()[0], err).replace(f"{place}/", ""), words.strip()), err
    assert contents(place) == before
    assert outside == []


AS_A_USER = [
    "train --max_step 5", "train --dry_run --model runs/finisht", "train --output_dir runs/finished",
    "train --resume runs/lost_run", "eval --model torn_weights", "eval --data words.txt",
    "tools index absent.jsonl", "tools import list.json cache.db",
]  # fmt: skip


@pytest.mark.slow
def test_a_wrong_call_as_a_user_makes_it(place, before):
    """Guards: an exit code or a line that is another one outside of a test."""
    words = dict(CALLS)
    for call in AS_A_USER:
        command, *argv = shlex.split(call)
        argv = [sys.executable, str(ROOT / f"{command}.py"), *argv]
        result = subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2, f"{call}: {result.stderr}"
        assert holds(the_error(command, result.stderr).replace(f"{place}/", ""), words[call].strip()), result.stderr
        assert contents(place) == before, call
