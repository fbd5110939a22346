"""What needs little memory gives the same numbers, and what does not fit is done again in smaller parts."""

import copy

import pytest
import torch
from conftest import grow, random_model
from meter import Meter
from peft import LoraConfig, get_peft_model

import arpo
import train
from arpo import Policy, UpdateConfig, token_logprobs, update
from data import cache, logits
from data import optimizer as optimizer_room
from data.logits import draw_tokens
from data.memory import Halving
from data.models import TINY, keep_inputs_as_they_come, load_model
from data.optimizer import Optimizer
from rollout import Sampler


@pytest.fixture(scope="module")
def grown(tokenizer):
    model = random_model(tokenizer, 3)
    prompts = ("the town is", "the river of the mayor", "old")
    trees = grow(Sampler(model, tokenizer), prompts, num_initial=2, num_generations=6)
    torch.manual_seed(0)
    return model, trees, torch.randn(3, 6)


# ---------------------------------------------------------------------------------- the draw


def plain_draw(scores, u, temperature):
    """The same in one go, with a tensor for every thought."""
    logp = scores.float().log_softmax(-1)
    entropies = -(logp.exp() * logp).nan_to_num().sum(-1)
    logp = (scores.float() / temperature).log_softmax(-1)
    cdf = logp.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
    return torch.cat([tokens.double(), logp.gather(-1, tokens).double(), entropies.double()[:, None]], dim=1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_draw_is_the_same_and_needs_little(temperature):
    """Guards: 24 bytes for each row and vocabulary entry, which is 2 GB at 512 rows; and other tokens for less."""
    torch.manual_seed(0)
    rows, vocab = 4 * logits.ROWS_OF_A_DRAW + 3, 3001
    scores, u = torch.randn(rows, vocab) * 3, torch.rand(rows, dtype=torch.double)
    scores[:, ::7] = -torch.inf
    most = {}
    for draw in (draw_tokens, plain_draw):
        with Meter(scores.device) as meter:
            meter.add(scores)
            drawn = draw(scores, u, temperature)
            most[draw] = (meter.peak - scores.numel() * 4) / vocab  # bytes
        assert torch.equal(drawn, plain_draw(scores, u, temperature))  # to the last bit
    assert 11 < most[draw_tokens] / logits.ROWS_OF_A_DRAW < 13 < 19 < most[plain_draw] / rows


# ---------------------------------------------------------------------------------- adapters


def test_inputs_of_adapters_are_kept_as_they_come_and_the_gradient_stays():
    """Guards: an fp32 copy of each layer's input, kept for the backward pass; and a gradient that pays for it."""
    found = []
    for lean in (False, True):
        torch.manual_seed(0)
        model, _, adapter, _ = load_model(str(TINY), 0, False, "cpu", torch.bfloat16)
        adapter = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        if lean:
            keep_inputs_as_they_come(adapter)
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:  # begins with zeros, which would hide the rest
                torch.nn.init.normal_(weight, std=0.1)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            logits_ = adapter(input_ids=torch.arange(200)[None], use_cache=False).logits
        logits_.float().log_softmax(-1)[..., 3].sum().backward()
        wide = {x.data_ptr() for x in kept if x.dtype == torch.float32 and x.shape[-2:] in ((200, 128), (200, 256))}
        gradient = torch.cat([weight.grad.flatten() for weight in adapter.parameters() if weight.requires_grad])
        found.append((logits_.detach(), gradient, len(wide)))
    (plain, slope, copies), (same, other, fewer) = found
    assert torch.equal(plain, same) and torch.allclose(slope, other, rtol=1e-5, atol=1e-7 * float(slope.abs().max()))
    assert fewer <= copies / 3  # the norms have theirs


# ---------------------------------------------------------------------------------- feeding


def test_feeds_are_split_and_the_trees_stay(tokenizer, monkeypatch):
    """Guards: a hundred results of 400 tokens in one forward pass; and rows that are lost between two of them."""
    model, fed = random_model(tokenizer, 1), []
    real = cache.RowCache.append
    append = lambda self, model, rows, filler: (
        fed.append(len(rows) * max(map(len, rows))) or real(self, model, rows, filler)
    )
    monkeypatch.setattr(cache.RowCache, "append", append)
    nodes = lambda trees: [(n.parent, n.rank, n.ids, n.observation) for tree in trees for n in tree.nodes]
    expected, most = nodes(grow(Sampler(model, tokenizer))), max(fed)
    fed.clear()
    monkeypatch.setattr(cache, "FEED_TOKENS", 30)
    assert nodes(grow(Sampler(model, tokenizer))) == expected
    assert max(fed) <= 30 < most  # no single row is longer here


# ---------------------------------------------------------------------------------- out of memory


def out_of_memory(kind):
    return {
        "torch": torch.OutOfMemoryError("CUDA out of memory"),
        "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    }[kind]


@pytest.mark.parametrize("kind", ["torch", "cublas"])
def test_work_is_halved_until_it_fits(kind, capsys):
    sizes, work = [], Halving(8192, 128, "--token_budget is")

    def attempt():
        sizes.append(work.size)
        if work.size > 2000:
            raise out_of_memory(kind)
        return "done"

    assert work.fit(attempt) == work.fit(attempt) == "done"
    assert sizes == [8192, 4096, 2048, 1024, 1024]
    assert "--token_budget is 1024 from now on" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shape"):
        work.fit(lambda: torch.zeros(2) @ torch.zeros(3, 3))  # another error


@pytest.mark.parametrize("parts, passes, call", [(1, 1, 1), (1, 1, 4), (3, 1, 1), (3, 1, 8), (3, 2, 4), (3, 2, 12)])
def test_a_minibatch_that_does_not_fit_is_done_again_alone(grown, monkeypatch, parts, passes, call):
    """Guards: a first minibatch that is trained on twice, half a gradient that stays, and another π_old."""
    model, trees, advantages = grown
    config = UpdateConfig(token_budget=300, num_minibatches=parts, num_iterations=passes)
    real, calls, found = token_logprobs, [], []

    def scarce(model, batch, temperature):
        calls.append(batch)
        logprobs = real(model, batch, temperature)
        if len(found) and len(calls) == call:  # not enough memory for the backward pass
            if logprobs.requires_grad:
                logprobs.sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logprobs

    monkeypatch.setattr(arpo, "token_logprobs", scarce)
    for _ in range(2):
        policy, taken = copy.deepcopy(model), []
        optimizer = Optimizer(policy, torch.optim.SGD(policy.parameters(), lr=0.5), max_grad_norm=1.0)
        step = optimizer.step
        optimizer.step = lambda step=step, taken=taken: taken.append(1) or step()
        metrics = update(policy, optimizer, trees, advantages, config)
        assert len(taken) == parts * passes
        found.append((metrics, torch.cat([p.detach().flatten() for p in policy.parameters()]), len(calls)))
        calls.clear()
    (plain, weights, count), (halved, again, _) = found
    assert call <= count and (plain["token_budget"], halved["token_budget"]) == (300, 150)
    assert torch.allclose(again, weights, atol=1e-5) and halved["trained"] >= plain["trained"]
    assert halved["loss"] == pytest.approx(plain["loss"], abs=1e-5)


def test_one_process_among_several_does_not_change_the_batches(grown, monkeypatch):
    """Guards: processes that share batches of different sizes, and so train on some twice and on others never."""
    model, trees, advantages = grown
    shared = type("State", (), {"num_processes": 2, "process_index": 0})
    monkeypatch.setattr(arpo, "PartialState", shared)
    monkeypatch.setattr(arpo, "token_logprobs", lambda *_: (_ for _ in ()).throw(out_of_memory("torch")))
    with pytest.raises(torch.OutOfMemoryError):
        update(copy.deepcopy(model), None, trees, advantages, UpdateConfig())


def test_masks_are_made_when_their_turn_comes(grown):
    """Guards: the masks of all micro-batches beside the first one's activations."""
    _, trees, advantages = grown
    batches = arpo.make_batches(trees, advantages, UpdateConfig(token_budget=300))
    assert len(batches) > 2
    for batch in batches:
        held = sum(v.untyped_storage().nbytes() for v in vars(batch).values() if isinstance(v, torch.Tensor))
        assert held < 200 * len(batch.ids) and batch.mask.shape == (len(batch.ids),) * 2


# ---------------------------------------------------------------------------------- the optimizer step


def test_the_loss_scale_backs_off_and_comes_back(monkeypatch):
    """Guards: a scale that overflows for ever, so that no step is taken, and one that stays low, so that all vanish."""
    monkeypatch.setattr(optimizer_room, "STEADY", 2)
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float32)
    model.dtype = torch.float16  # of the frozen weights around an adapter
    optimizer = Optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1), max_grad_norm=1e9)
    scales, taken = [], []
    for overflows in (True, True, False, False, False, False):
        before = model.weight.detach().clone()
        optimizer.backward(model(torch.ones(2)).sum())
        assert torch.equal(model.weight.grad, torch.full((1, 2), optimizer.scale))
        if overflows:
            model.weight.grad[0, 0] = torch.inf
        told = optimizer.step()
        scales.append(optimizer.scale)
        taken.append((told["skipped"], round(float((before - model.weight).detach().max()), 4)))
    assert scales == [256, 16, 16, 32, 32, 64]
    assert taken == [(1, 0.0)] * 2 + [(0, 0.1)] * 4  # whatever the scale, the step is the gradient's


def test_a_cold_start_that_does_not_fit_is_done_in_parts_and_one_without_numbers_ends(grown, tokenizer, monkeypatch):
    """Guards: an adapter that is NaN for good after one bad loss, and conversations too long for the card."""
    model, _, _ = grown
    ids = tokenizer.encode("the river of the town is long " * 5)
    examples = [(ids, [0] * 5 + [1] * (len(ids) - 5))] * 20
    config = train.read_flags("--stage sft --sft_steps 2 --sft_batch_tokens 1000".split())
    found, real = [], train.logprobs_of

    def learn():
        policy = Policy(copy.deepcopy(model), tokenizer)
        loss = train.train_sft(policy, examples, config)
        return loss, torch.cat([p.detach().flatten() for p in policy.model.parameters()])

    def scarce(model, hidden, targets):
        if len(targets) > 250:
            raise out_of_memory("torch")
        found.append(len(targets))
        return real(model, hidden, targets)

    loss, weights = learn()
    monkeypatch.setattr(train, "logprobs_of", scarce)
    again, same = learn()
    assert len(found) > 2 * 2 and again == pytest.approx(loss, rel=1e-5) and torch.allclose(same, weights, atol=1e-5)
    monkeypatch.setattr(train, "logprobs_of", lambda *rest: real(*rest) * float("nan"))
    config = train.read_flags("--stage sft --sft_steps 9 --sft_batch_tokens 1000".split())
    with pytest.raises(SystemExit, match="step 3: .* not finite in 3 steps in a row; lower --sft_learning_rate"):
        learn()
