"""Decode speed as a share of what the memory's bandwidth allows, at the shapes of real models with random weights.

    python tests/bench/decode.py                     the 1.5B shape at 16, 64 and 128 rows, bf16
    python tests/bench/decode.py --load_in_4bit
    python tests/bench/decode.py --shapes small      on a CPU, in seconds

A decoding step must read every weight and every row's cached keys and values once. That many bytes, over the
measured bandwidth of a large copy, is the least time a step can take; the share is that time over the real one.
The project's own `Sampler` decodes, entropies and draws included.
"""

import argparse
import time

import torch
from memory import SHAPES, StandInTokenizer, build

from rollout import Row, Sampler


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bandwidth(device: str, megabytes: int = 256) -> float:
    """Bytes read and written a second by a large copy; the best of five."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(5):
        started = now(device)
        target.copy_(source)
        seconds.append(now(device) - started)
    return 2 * source.numel() / min(seconds)


def measure(shape: str, rows: int, prompt_tokens: int, steps: int, four_bit: bool, device: str) -> list[float]:
    """Milliseconds of a step, the least possible, and that as a share."""
    model = build(shape, four_bit, device)
    sampler = Sampler(model, StandInTokenizer(model.config.vocab_size))
    sampler.may_stop = set()  # every row decodes to its limit
    prompt = torch.randint(3, 250, (prompt_tokens,)).tolist()

    def decode(count: int) -> float:
        sampler.prefill([prompt])
        places = dict(ids=prompt, source=0, turn_start=len(prompt), stop_at=len(prompt) + count)
        begun = [Row(f"{row}", **places) for row in range(rows)]
        started = now(device)
        sampler(begun, 1.0, lambda row, turn: None)
        return now(device) - started

    decode(4)  # warm
    few, many = (min(decode(count) for _ in range(3)) for count in (4, 4 + steps))
    seconds = (many - few) / steps  # what does not grow with the steps cancels
    read = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "embed_tokens" not in name)
    if model.config.tie_word_embeddings:  # the head reads them
        read += model.get_input_embeddings().weight.numel() * model.get_input_embeddings().weight.element_size()
    layer = sampler.cache.layers[0]
    cached = 2 * layer.keys[:, :, :1].numel() * layer.keys.element_size() * len(sampler.cache.layers)
    read += cached * (prompt_tokens + steps // 2)
    least = read / bandwidth(device)
    return [1000 * seconds, 1000 * least, least / seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.5B"])
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--load_in_4bit", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU")
    print("| shape | rows | ms a step | ms at full bandwidth | share |\n|---|---|---|---|---|")
    for shape in args.shapes:
        for rows in args.rows:
            own = args.prompt_tokens, args.steps, args.load_in_4bit
            milliseconds, least, share = measure(shape, rows, *own, device)
            bits = "4-bit" if args.load_in_4bit else "16 bits" if device == "cuda" else "fp32"
            print(f"| {shape} {bits} | {rows} | {milliseconds:.1f} | {least:.3f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
