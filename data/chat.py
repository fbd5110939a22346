"""A model that goes on with a text: one in memory, or one behind an OpenAI-compatible endpoint.

Both answer a `Prompt` with a `Reply`, and what asks (`agents.py`, `judge.py`) does not see which of them it was. A
model in memory answers many prompts in one batch, and each row draws from its own key, so that a text does not depend
on what was beside it. An endpoint is asked from several threads, waits when it is told to, asks again what came to
nothing, and keeps what it got in the cache of the web, so that nothing is paid for twice. Left out: a cache of keys and
values from one turn to the next, repetition penalties, and streams.
"""

import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import chain

import torch
from transformers import GenerationConfig, LogitsProcessor

from data.format import RESULT, encode_chat, encode_plain, encode_result, tagged
from data.memory import Halving
from data.rows import plain_text
from data.web import Cache, WebError, request, seconds_to_wait

LONGEST_WAIT = 600.0  # seconds: an endpoint that asks for more is not waited for
TAIL = 24  # tokens that are looked at for the end of a stop


@dataclass(frozen=True)
class Prompt:
    """What a model is to go on with."""

    user: str  # strangers' texts may be in it
    system: str = ""
    written: tuple[str, ...] = ()  # after that: the model's own text, what came back, its own again, and so on
    stops: tuple[str, ...] = ()  # the text ends with the first of these, which is part of it
    key: str = ""  # names the randomness
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512


@dataclass(frozen=True)
class Reply:
    text: str
    end: str = "end"  # by itself or at a stop; "length": out of tokens; "context": no room for them; "error"
    read: int = 0  # tokens of the prompt
    wrote: int = 0


# ---------------------------------------------------------------------------------- a model in memory


class LocalModel:
    """A Hugging Face causal LM; `around` makes a context in which it has another form, such as without its adapter."""

    def __init__(self, model, tokenizer, max_rows=64, around: Callable[[], AbstractContextManager] | None = None):
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self.around = around or (lambda: nullcontext(model))
        ends = model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9

    def __call__(self, prompts: list[Prompt]) -> list[Reply]:
        rows = [self.encode(prompt) for prompt in prompts]
        replies = {i: Reply("", "context", len(row)) for i, row in enumerate(rows) if len(row) >= self.context}
        left = sorted(set(range(len(rows))) - replies.keys(), key=lambda i: (len(rows[i]), i))
        wanted = min(self.max_rows, len(left))
        at_once = Halving(wanted, 1, "texts written at once:")
        some = lambda: [(prompts[i], rows[i]) for i in left[: at_once.size]]
        while left:
            done = at_once.fit(lambda: self._generate(*zip(*some())))
            replies |= zip(left, done)
            del left[: len(done)]
        self.max_rows = at_once.size if at_once.size < wanted else self.max_rows
        return [replies[i] for i in range(len(prompts))]

    def stop(self) -> None:
        """As for an endpoint; nothing is in line here."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids; what came back holds no tokens with a meaning of their own, but for the tags around a result."""
        own = lambda text: self.tokenizer.encode(text, add_special_tokens=False)

        def back(text: str) -> list[int]:
            result = re.fullmatch(tagged(RESULT, "(.*)"), text, re.DOTALL)
            return encode_result(self.tokenizer, result[1], 10**9) if result else encode_plain(self.tokenizer, text)

        parts = [back(text) if i % 2 else own(text) for i, text in enumerate(prompt.written)]
        return [*encode_chat(self.tokenizer, prompt.user, prompt.system), *chain(*parts)]

    @torch.no_grad()
    def _generate(self, prompts: list[Prompt], rows: list[list[int]]) -> list[Reply]:
        width, pad = max(map(len, rows)), min(self.ends)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        draw = Draw(self, prompts, [min(p.max_tokens, self.context - len(r)) for p, r in zip(prompts, rows)])
        settings = GenerationConfig(max_new_tokens=max(draw.limits), do_sample=False, pad_token_id=pad)
        stop = lambda ids, _, **kwargs: ids.new_full(ids.shape[:1], all(draw.ends), dtype=torch.bool)
        more = dict(logits_processor=[draw], stopping_criteria=[stop], generation_config=settings)
        with self.around() as model:
            # `generate` fills unset fields from the checkpoint, e.g. a repetition penalty: leave it none.
            model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=sorted(self.ends))
            model.generate(input_ids=ids, attention_mask=mask, **more)
        texts = [self.text(row) for row in draw.rows]
        sizes = zip(map(len, rows), map(len, draw.rows))
        return [Reply(up_to_stop(t, p.stops), e, *n) for t, p, e, n in zip(texts, prompts, draw.ends, sizes)]

    def text(self, ids: list[int]) -> str:
        ids = ids[:-1] if ids and ids[-1] in self.ends else ids
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class Draw(LogitsProcessor):
    """Draws each row's tokens from its own randomness, and says which rows have come to an end, and how.

    All other tokens get -inf, so that `generate`, decoding greedily, takes the drawn one.
    """

    def __init__(self, local: LocalModel, prompts: list[Prompt], limits: list[int]):
        self.local, self.prompts, self.limits = local, prompts, limits
        self.rows, self.ends = [[] for _ in prompts], [""] * len(prompts)
        self.streams = [random.Random(prompt.key) for prompt in prompts]
        self.temperatures = torch.tensor([[prompt.temperature] for prompt in prompts])
        self.top_p = torch.tensor([[prompt.top_p] for prompt in prompts])

    def __call__(self, input_ids, logits):
        """Of logits (B, V) the same with one that is not -inf in each row."""
        likeliest = logits.argmax(-1, keepdim=True)
        hot = self.temperatures.to(logits.device)
        shares, order = (logits.float() / hot.clamp(min=1e-6)).softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = shares.cumsum(-1) - shares
        cdf = shares.where(before < self.top_p.to(logits.device), torch.zeros_like(shares)).double().cumsum(-1)
        u = torch.tensor([[stream.random()] for stream in self.streams], dtype=torch.double, device=logits.device)
        place = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        tokens = torch.where(hot > 0, order.gather(-1, place), likeliest)
        for i, token in enumerate(tokens[:, 0].tolist()):
            if not self.ends[i]:
                self._note(i, token)
        return torch.full_like(logits, -torch.inf).scatter(-1, tokens, 0.0)

    def _note(self, i: int, token: int) -> None:
        self.rows[i].append(token)
        tail = self.local.tokenizer.decode(self.rows[i][-TAIL:]) if self.prompts[i].stops else ""
        if token in self.local.ends or any(stop in tail for stop in self.prompts[i].stops):
            self.ends[i] = "end"
        elif len(self.rows[i]) >= self.limits[i]:
            self.ends[i] = "length"


def up_to_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text to the end of the stop that is complete first."""
    return text[: min([text.find(stop) + len(stop) for stop in stops if stop in text], default=len(text))]


class Remembering:
    """A model in memory whose texts are kept in a cache under its name: a text that is there is not written again."""

    def __init__(self, model: LocalModel, name: str, cache: Cache):
        self.model, self.name, self.cache = model, name, cache

    def __call__(self, prompts: list[Prompt]) -> list[Reply]:
        keys = [sha256(json.dumps(asdict(prompt)).encode()).hexdigest() for prompt in prompts]
        found = [self.cache.get(f"say {self.name}", key, _nothing) for key in keys]
        missing = [i for i, result in enumerate(found) if result.fault and self.cache.mode != "offline"]
        written = dict(zip(missing, self.model([prompts[i] for i in missing]) if missing else []))
        self.cache.load(f"say {self.name}", {keys[i]: json.dumps(asdict(reply)) for i, reply in written.items()})
        stored = lambda r: Reply(r.text, "error") if r.fault else Reply(**json.loads(r.text))
        return [written.get(i) or stored(result) for i, result in enumerate(found)]


def _nothing() -> str:
    raise WebError("not in the cache", fault=True)


# ---------------------------------------------------------------------------------- a model at an endpoint


@dataclass(eq=False)
class Endpoint:
    """A model behind an OpenAI-compatible address, such as https://host/v1. May be used from many threads.

    What fails for a while (a timeout, a busy or failing server, an answer that is none) is asked again; what fails for
    good is a `Reply` that ends in "error"; and an address or a key that is wrong raises OSError. `counts`: answers,
    cached, tried again, failed, and the tokens read and wrote that the endpoint tells; an answer is counted once,
    however often it was asked for. Most endpoints cannot go on with a text that is begun: what came back to the model
    is then a message of the user. With `prefill` (vLLM, SGLang) it goes on with its own.
    """

    url: str
    model: str
    cache: Cache = field(default_factory=Cache)
    role: str = "endpoint"  # its key is in ENDPOINT_API_KEY, or else in OPENAI_API_KEY
    prefill: bool = False
    threads: int = 8
    seconds: float = 300.0  # for one answer
    tries: int = 6
    patience: float = 1.0  # seconds before the second try, doubled for each further one

    def __post_init__(self):
        self.counts: Counter = Counter()
        self._lock, self._free_at, self._stopped = threading.Lock(), 0.0, threading.Event()
        self._spelling: dict[str, str] = {}  # of settings that the model knows by another name, or not at all
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.role)

    def __call__(self, prompts: list[Prompt]) -> list[Reply]:
        return list(self._pool.map(self.answer, prompts))

    def submit(self, prompt: Prompt) -> Future[Reply]:
        return self._pool.submit(self.answer, prompt)

    def check(self) -> None:
        """Asks once; OSError where there is nobody. Who is merely busy is there."""
        if self.cache.mode == "offline":
            return
        self.cache.pay()
        try:
            self._exchange(self._payload(Prompt("Say yes.", max_tokens=16)))
        except Passing as trouble:
            if not trouble.busy:
                raise OSError(f"{self}: {trouble}") from None

    def stop(self) -> None:
        """Nothing new is asked: else what waits in line would be paid for while the command ends."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, prompt: Prompt) -> Reply:
        payload = self._payload(prompt)
        asked = json.dumps([payload, prompt.key * (prompt.temperature > 0)])
        kind, key = f"say {self.model}", sha256(asked.encode("utf-8", "replace")).hexdigest()
        result = self.cache.get(kind, key, lambda: json.dumps(self._ask(payload, self.tries)))
        if result.outcome != "ok":
            self._count(failed=1)
            return Reply(result.text, "error")
        choice, read, wrote = json.loads(result.text)
        self._count(**({"cached": 1} if result.cached else {"answers": 1, "read": read, "wrote": wrote}))
        text, end = _said(choice, prompt.stops)
        return Reply(text, end, read, wrote)

    def read(self, prompt: str, max_tokens: int = 400) -> str:
        """What it says to a prompt, greedily. Raises WebError."""
        try:
            reply = self.answer(Prompt(prompt, max_tokens=max_tokens))
        except OSError as error:
            raise WebError(str(error), fault=True) from None
        if reply.end == "error" or not reply.text.strip():
            told = reply.text.removeprefix("Error: ").strip() or "the endpoint's answer holds no message."
            raise WebError(told, fault=True)
        return reply.text.strip() + "…" * (reply.end == "length")

    def __str__(self) -> str:
        flag = "model" if self.role == "endpoint" else f"{self.role}_model"
        return f"--{self.role} {self.url} --{flag} {self.model!r}"

    def report(self) -> str:
        listed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(self.counts.items()))
        return f"{self.role} {self.model}: {listed or 'not asked'}"

    def _payload(self, prompt: Prompt) -> dict:
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        messages.append({"role": "user", "content": prompt.user})
        more = {"temperature": prompt.temperature, "top_p": prompt.top_p, "max_tokens": prompt.max_tokens}
        if prompt.written and self.prefill:
            messages.append({"role": "assistant", "content": "".join(prompt.written)})
            more |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            turns = [(("assistant", "user")[i % 2], text) for i, text in enumerate(prompt.written)]
            messages += [{"role": role, "content": text} for role, text in turns if text]
        if prompt.stops:
            more["stop"] = list(prompt.stops[:4])  # which is as many as are allowed; all are looked for here as well
        return {"model": self.model, "messages": messages} | more

    def _ask(self, payload: dict, tries: int) -> tuple[dict, int, int]:
        """A choice, and the tokens read and written. Raises WebError, and OSError where nothing will be answered."""
        to_pay = True
        for attempt in range(1, tries + 1):
            if self._stopped.is_set():
                raise WebError("nothing is asked any more.", fault=True)
            if to_pay:
                self.cache.pay()
            try:
                return self._exchange(payload)
            except Passing as trouble:
                told, to_pay, wait = str(trouble), not trouble.busy, trouble.wait
            if attempt == tries or wait > LONGEST_WAIT:
                break
            self._count(tried_again=1)
            until = time.monotonic() + max(wait, self.patience * 2 ** (attempt - 1))
            if wait:  # it told one, and meant all
                self._free_at = max(self._free_at, until)
            self._stopped.wait(max(0.0, until - time.monotonic()))
        raise WebError(told, fault=True)

    def _exchange(self, payload: dict) -> tuple[dict, int, int]:
        while (seconds := self._free_at - time.monotonic()) > 0 and not self._stopped.wait(seconds):
            pass  # another thread may have been told to wait for longer
        key = os.environ.get(f"{self.role.upper()}_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        sent = {self._spelling.get(name, name): value for name, value in payload.items()}
        sent.pop("", None)
        url, deadline = f"{self.url.rstrip('/')}/chat/completions", time.monotonic() + self.seconds
        try:
            status, found, answer = request(url, deadline, None, headers, json.dumps(sent).encode())
        except WebError as error:
            raise Passing(str(error)) from None
        if status == 200:
            with suppress(ValueError, LookupError, TypeError, AttributeError):
                return _choice(json.loads(answer))
            raise Passing("the endpoint's answer holds no message.")
        if status in (401, 402, 403, 404):
            raise OSError(f"{self}: expected an answer, found status {status}")
        told = f"the server answered with status {status}."
        if status in (408, 409, 425, 429) or status >= 500:
            raise Passing(told, True, seconds_to_wait(found["retry-after"]) if "retry-after" in found else 0.0)
        if not self._respells(sent, answer.decode("utf-8", "replace")):
            raise WebError(told, fault=True)  # not kept: a 400 may be about the key
        raise Passing(told, busy=True)

    def _respells(self, sent: dict, complaint: str) -> bool:
        """Whether settings that were sent, and that the model does not know, are left out or called otherwise now."""
        unknown = re.search("(?i)unsupported|not support|unrecogni|unknown|not permitted|not allowed", complaint)
        settings = {"max_tokens": "max_completion_tokens", "stop": "", "top_p": "", "temperature": ""}
        named = {name: new for name, new in settings.items() if name in sent and re.search(rf"\b{name}\b", complaint)}
        if unknown:
            self._spelling |= named
        return bool(unknown and named)

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)


class Passing(Exception):
    """A try that came to nothing. `busy`: the server is there, and did no work; `wait`: what it says, in seconds."""

    def __init__(self, told: str, busy: bool = False, wait: float = 0.0):
        super().__init__(told)
        self.busy, self.wait = busy, wait


def _choice(answer: dict) -> tuple[dict, int, int]:
    """What is kept of an answer, and the tokens read and written. Raises where there is none."""
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    message = choice["message"]
    text = plain_text(message.get("content"))
    text = message.get("refusal") if text is None else text
    if not isinstance(text, str):
        raise ValueError(text)
    tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    kept = {"text": text, "end": choice.get("finish_reason"), "stop": choice.get("stop_reason")}
    return kept, *(count if isinstance(count, int) else 0 for count in tokens)


def _said(choice: dict, stops: tuple[str, ...]) -> tuple[str, str]:
    """The text, and how it ended. Endpoints leave the stop out, and few say which it was: it is the open tag's end."""
    text = up_to_stop(choice["text"], stops)
    if choice["end"] == "length" and not text.endswith(stops):
        return text, "length"
    if not any(stop in text for stop in stops) and choice["end"] == "stop":
        opened = {stop: stop.replace("</", "<").replace("end_", "begin_") for stop in stops}
        places = {stop: text.rfind(tag) for stop, tag in opened.items() if tag != stop and tag in text}
        text += choice["stop"] if choice["stop"] in stops else max(places, key=places.get, default="")
    return text, "end"
