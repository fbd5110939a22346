"""The built-in models: a tokenizer of some 1,000 tokens and a Qwen2 configuration of about a million weights.

Both are made from scratch, and so small that a laptop trains and samples them. The tokenizer is Qwen2's
own kind (lossless byte-level BPE, digits one by one) with few merges and a token for each tag, so that
`AutoTokenizer` loads it like any other; the model knows nothing but what the cold start shows it. Left
out: training (`train.py`), weights, and the meaning of the tags (`format.py`).
"""

import json
from collections.abc import Iterable

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2Tokenizer

from data.format import BUILT_IN_TEMPLATE, tag_names

PAD, END, USER, ASSISTANT = MARKS = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"  # the first tokens, in this order
VOCAB_SIZES = {"world": 1024, "trails": 1280}  # at most; in the trails each name is one token


def build_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZES["world"]) -> Qwen2Tokenizer:
    """Learns the merges from texts. A word's token carries the space before it, so write tag contents with one."""
    special = [*MARKS, *(f"<{slash}{name}>" for name in tag_names() for slash in ("", "/"))]
    bpe = Qwen2Tokenizer().backend_tokenizer  # for its splitting rule; its vocabulary is empty
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, unk_token=None, pad_token=PAD, eos_token=END)
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template = BUILT_IN_TEMPLATE
    return tokenizer


def tiny_config(vocab_size: int) -> Qwen2Config:
    """About 0.92 million weights for 1,024 tokens; give it to Qwen2ForCausalLM."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=MARKS.index(PAD),
        eos_token_id=MARKS.index(END),
    )
