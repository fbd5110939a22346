"""Times the index of a generated corpus: python tests/bench/bench_search.py [passages, 100000 by default]."""

import json
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.corpus import Corpus, index_corpus

VOCABULARY, WORDS, QUERIES = 50_000, 60, 200


def zipf_words(rng: random.Random, count: int) -> list[str]:
    """Words whose frequency falls with their rank, as in a language."""
    return [f"w{int(VOCABULARY ** rng.random())}x" for _ in range(count)]


def main() -> None:
    passages, rng = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.jsonl")
        with open(corpus, "w") as file:
            for _ in range(passages):
                words = zipf_words(rng, WORDS)
                file.write(json.dumps({"title": " ".join(words[:3]), "text": " ".join(words)}) + "\n")
        started = time.perf_counter()
        index = index_corpus(corpus)
        print(f"{passages:,} passages indexed in {time.perf_counter() - started:.1f} s")
        print(f"{corpus.stat().st_size / 2**20:.0f} MiB of text, {index.stat().st_size / 2**20:.0f} MiB of index")
        search, seconds = partial(Corpus(index).search, top_k=5), []
        for _ in range(QUERIES):
            words = [word for word in zipf_words(rng, 20) if len(word) > 4][:3]  # ranks from 100: content words
            started = time.perf_counter()
            search(f"what is the {words[0]} of the {words[1]} in {words[2]}?")
            seconds.append(1000 * (time.perf_counter() - started))
        print(f"query: median {statistics.median(seconds):.1f} ms, slowest of {QUERIES} {max(seconds):.0f} ms")


if __name__ == "__main__":
    main()
