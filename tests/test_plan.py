"""The memory plan against the memory model of `meter.py`: seven shapes on four cards, without any of them."""

import functools
from dataclasses import replace

import pytest
import torch
from meter import SHAPES, rollout_peak, update_peak
from test_house import ROOT

import arpo
import train
from arpo import Policy
from data import memory
from data.memory import CACHE_COPY, PROMPT_TOKENS, Demand, MemoryPlan, Shape, TooLarge, choose, usable
from data.models import SIZES

CARDS, CONTEXT = (8, 12, 16, 24), 0.6e9  # GiB; bytes that CUDA and a screen take before anything is asked for
LENGTHS = 2048, 4096
CONFIG = train.TrainConfig(**SIZES["real"])


@functools.cache
def plan_for(name: str, card: int, tokens: int, lora_r: int | None = 16) -> MemoryPlan | TooLarge:
    demand = Demand.of(replace(CONFIG, max_completion_length=tokens), lora_r)
    dtype = torch.float32 if lora_r == 0 else torch.bfloat16
    shape = Shape.of(SHAPES[name]())
    try:
        return choose(shape, demand, "cuda", dtype, int(card * 2**30 - CONTEXT), [False, True][: 1 + (lora_r != 0)])
    except TooLarge as error:
        return error


def plans(name: str) -> list[tuple[int, int, MemoryPlan]]:
    """Those that were made, the tightest first: card, tokens, plan."""
    all_of_them = [(card, tokens, plan_for(name, card, tokens)) for card in CARDS for tokens in LENGTHS]
    return [made for made in all_of_them if isinstance(made[2], MemoryPlan)]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n not in ("1.5B", "7B") else ()) for n in SHAPES]
)
def test_a_plan_fits_by_the_memory_model(name):
    """Guards: a rule of thumb that overlooks logits, masks, the fed cache's copy or an adapter's inputs."""
    card, tokens, plan = plans(name)[0]
    update = update_peak(name, max(plan.token_budget, tokens + PROMPT_TOKENS), plan.load_in_4bit)
    assert 0.97 * plan.update < update < 1.02 * plan.update
    rows = min(plan.fit, 16)
    rollout = rollout_peak(name, rows, tokens + PROMPT_TOKENS, plan.load_in_4bit)
    planned = plan.rollout - CACHE_COPY * plan.row * (plan.fit - rows)
    assert 0.75 * planned < rollout <= planned
    assert max(update, rollout, plan.rollout) < card * 2**30 - CONTEXT


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_plan_fits_by_the_memory_model(name):
    for _, tokens, plan in plans(name):
        assert update_peak(name, max(plan.token_budget, tokens + PROMPT_TOKENS), plan.load_in_4bit) < usable(plan.free)
        assert rollout_peak(name, min(plan.fit, 64), tokens + PROMPT_TOKENS, plan.load_in_4bit) < usable(plan.free)


@pytest.mark.parametrize("name", SHAPES)
def test_more_memory_never_buys_less(name):
    for tokens in LENGTHS:
        made = [plan for card in CARDS if isinstance(plan := plan_for(name, card, tokens), MemoryPlan)]
        for small, large in zip(made, made[1:]):
            assert large.token_budget >= small.token_budget and large.load_in_4bit <= small.load_in_4bit
            assert large.max_rows >= small.max_rows or large.load_in_4bit < small.load_in_4bit
        for plan in made:
            assert max(plan.rollout, plan.update) <= usable(plan.free) and plan.fit > 0


@pytest.mark.parametrize(
    "name, card, tokens", [("1.5B", 8, 2048), ("1.5B", 8, 4096), ("3B", 12, 4096), ("7B", 24, 4096)]
)
def test_what_one_card_must_hold(name, card, tokens):
    """16 leaves at once, all of them at the limit, and the update at its full budget."""
    plan = plan_for(name, card, tokens)
    assert plan.fit >= 16 and plan.max_rows >= 16 and plan.token_budget == CONFIG.token_budget == 8192
    assert update_peak(name, 8192, plan.load_in_4bit) < usable(plan.free)


def test_what_cannot_fit_is_refused_with_what_would():
    for name, card, tokens, would in [
        ("14B", 8, 2048, "a smaller model"),
        ("14B", 16, 10_000, "--max_completion_length 4096"),
    ]:
        told = str(plan_for(name, card, tokens))
        assert told.startswith("expected ") and "GB of memory at least, found" in told and told.endswith(would)
    in_full = plan_for("1.5B", 24, 2048, 0)  # Adam alone is 12 GB
    assert str(in_full).endswith("what would fit: --lora_r 16")
    shape, demand = Shape.of(SHAPES["7B"]()), Demand.of(CONFIG, 16)
    with pytest.raises(TooLarge, match="what would fit: --load_in_4bit"):
        choose(shape, demand, "cuda", torch.bfloat16, 12 * 2**30, [False])


def test_nothing_is_loaded_where_it_cannot_fit(monkeypatch):
    """Guards: minutes of loading before the first allocation that fails."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 200e6)
    monkeypatch.setattr(arpo.models, "load_model", lambda *rest: pytest.fail("it was loaded"))
    with pytest.raises(TooLarge, match="expected .* GB of memory at least, found"):
        Policy.open(train.TrainConfig(lora_r=0), 0)


def test_weights_in_4_bits_are_never_trained(monkeypatch):
    """Guards: a run that says all weights are trained, and trains the norms."""
    with pytest.raises(ValueError, match="--load_in_4bit: expected an adapter .* found --lora_r 0"):
        train.read_flags("--load_in_4bit --lora_r 0".split())
    for card in CARDS:
        plan = plan_for("0.5B", card, 2048, 0)
        assert isinstance(plan, TooLarge) or not plan.load_in_4bit


def test_an_evaluation_has_no_update():
    """Guards: weights in 4 bits, or a refusal, for the sake of an update that never comes."""
    asked, trained = (plan_for("7B", 24, 4096, lora_r) for lora_r in (None, 16))
    assert asked.update == asked.token_budget == 0 and asked.held < trained.held and asked.fit > trained.fit


def test_the_settings_of_a_run_are_the_plans(monkeypatch):
    """Guards: a plan that is printed and not followed, and processes that follow plans of their own."""
    config = replace(CONFIG, model="some/model")
    made = [replace(plan_for("7B", 12, 2048), token_budget=4096), plan_for("7B", 24, 2048)]
    monkeypatch.setattr(train.TrainConfig, "memory", lambda self, lora_r: made[0])
    monkeypatch.setattr(train, "everyones", lambda plan: made)
    assert (made[0].load_in_4bit, made[1].load_in_4bit) == (True, False)
    settled = train.in_memory(config)
    assert settled.load_in_4bit is True and settled.token_budget == 4096


def cell(plan: MemoryPlan | TooLarge) -> str:
    if isinstance(plan, TooLarge):
        return "refused"
    return f"{'4-bit' if plan.load_in_4bit else 'bf16'}, {plan.max_rows} rows, {plan.token_budget:,} tokens"


def test_the_table_in_the_docs_is_the_codes():
    lines = []
    for tokens in LENGTHS:
        lines += ["", f"| {tokens:,} tokens | " + " | ".join(f"{card} GB" for card in CARDS) + " |"]
        lines += ["|---" * (1 + len(CARDS)) + "|"]
        lines += [
            f"| {name} | " + " | ".join(cell(plan_for(name, card, tokens)) for card in CARDS) + " |" for name in SHAPES
        ]
    table = "\n".join(lines)
    assert table in (ROOT / "docs/memory.md").read_text(encoding="utf-8"), table
