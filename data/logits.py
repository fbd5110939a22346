"""From hidden states to logits, log-probabilities and drawn tokens, without ever holding all of (T, V) or (B, V) twice.

With a vocabulary V of 150,000 these are the largest tensors there are, so they exist some rows at a time. Left out:
where hidden states come from (`arpo.py`), and when a turn ends (`rollout.py`).
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import TopPLogitsWarper

LOGITS_BYTES = 160e6  # of a chunk of logits in fp32: 263 rows of 151,936
ROWS_OF_A_DRAW = 32  # whose next tokens are drawn together: 58 MB of temporary numbers at V = 151,936


def logits_of(model, hidden: Tensor) -> Tensor:
    """The model's logits (…, V), fp32, from its last hidden states; some models scale or cap what their head gives."""
    config, logits = model.config.get_text_config(), model.get_output_embeddings()(hidden).float()
    scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    logits = logits if scale == 1 else logits * scale  # a product would be one more copy of the largest tensor there is
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def logprobs_of(model, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log π of the targets (S,), from the hidden states before them (S, width).

    (S, V) logits are what a small card has no room for: they exist a chunk at a time, and are computed again in the
    backward pass.
    """

    def logprobs(rows: Tensor, wanted: Tensor) -> Tensor:
        logits = logits_of(model, rows)
        return -cross_entropy(logits if temperature == 1 else logits / temperature, wanted, reduction="none")

    rows = rows_of_logits(model.get_output_embeddings().weight.shape[0])
    parts = zip(hidden.split(rows), targets.split(rows))
    return torch.cat([checkpoint(logprobs, *part, use_reentrant=False) for part in parts])


def rows_of_logits(vocab: int) -> int:
    """Rows of logits that exist at once. They have as many bytes on any card, so that results do not depend on it."""
    return max(1, int(LOGITS_BYTES // (4 * vocab)))


def draw_tokens(logits: Tensor, u: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Draws a token of each row of logits (B, V) by inverse CDF at u (B,) in [0, 1); at temperature 0 the likeliest.

    With `top_p` below 1 it is drawn from the likeliest tokens that have this share. Returns (B, 3) in fp64: the token,
    its log-probability in the distribution that it is drawn from, and the entropy of the row's distribution at
    temperature 1, in nats. NaN and infinite logits give a log-probability of NaN.
    """
    parts = zip(logits.split(ROWS_OF_A_DRAW), u.split(ROWS_OF_A_DRAW))
    return torch.cat([_draw(some, places, temperature, top_p) for some, places in parts])


def _draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """In place, where nobody needs the operand: at most 12 bytes for each logit at a time."""
    logp = logits.float().log_softmax(-1)
    entropies = -logp.exp().mul_(logp).nan_to_num_().sum(-1, keepdim=True)
    if temperature == 0:
        tokens = logp.argmax(-1, keepdim=True)
    else:
        if temperature != 1 or top_p < 1:
            logp = logits.float() / temperature
            logp = (TopPLogitsWarper(top_p)(None, logp) if top_p < 1 else logp).log_softmax(-1)
        cdf = logp.double().exp_().cumsum_(-1)
        tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp(max=logp.shape[-1] - 1)
    return torch.cat([tokens.double(), logp.gather(-1, tokens).double(), entropies.double()], dim=1)
