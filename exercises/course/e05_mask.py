"""Exercise 5: which tokens are learned from."""

from exercises.course.exercise import Exercise, Mistake
from exercises.patches import Blank


def cases(rng):
    word = lambda: "".join(rng.choice("abcdefg") for _ in range(rng.randint(2, 5)))
    drawn = [
        {"question": word(), "turns": [[word(), word() if n < calls else None] for n in range(calls + 1)]}
        for calls in (0, 1, 2, 3)
    ]
    drawn[3]["turns"][1][1] = ""  # a result without a text
    return drawn


def expected(case):
    """One character, one token: nothing of the prompt, all of what the policy wrote and the end, nothing of results."""
    mask = []
    for text, result in case["turns"]:
        mask += [1 for _ in text]
        mask += [1] if result is None else [0 for _ in "<result>" + result + "</result>"]
    return [0, mask]


def probe(case):
    from data.format import encode_prompt, encode_turns

    class Characters:  # a tokenizer: one token a character
        chat_template, bos_token_id, unk_token_id, eos_token_id, is_fast = None, None, None, 3, True

        def encode(self, text, add_special_tokens=True):
            return [ord(char) for char in text]

        def __call__(self, text, **how):
            places = [(n, n + 1) for n in range(len(text))]
            return {"input_ids": self.encode(text), "offset_mapping": places}

        def decode(self, ids):
            return "".join(map(chr, ids))

        def get_added_vocab(self):
            return {}

    tokenizer = Characters()
    turns = [(text, result) for text, result in case["turns"]]
    ids, own = encode_turns(tokenizer, case["question"], turns, 1000)
    prompt = len(encode_prompt(tokenizer, case["question"]))
    return [sum(own[:prompt]), own[prompt:]]


RIGHT = "own += [1] * len(turn_ids) + [0] * len(result_ids)"

EXERCISE = Exercise(
    number=5,
    title="The mask",
    minutes=15,
    core=True,
    task="Extend `own` by a 1 for each token that the policy wrote and a 0 for each that it did not.",
    idea="The policy learns from what it chose: its turns and its end token, and nothing that the world answered.",
    misconception="everything after the prompt is the answer",
    question="The end token of a conversation and the padding are often the same id. What breaks if the mask is made "
    "from ids?",
    answer="The end token is masked out with the padding, and the policy never learns to stop.",
    blanks=(Blank("data/format.py", "encode_turns", "own +="),),
    asks=("exercise 5: extend own for this turn, whose tokens are turn_ids and then result_ids",),
    told="a character is a token here, and a result stands between <result> and </result>, 17 more; turns: what the "
    "policy wrote, and the result, None at the end, where the end token stands; an answer has the ones in the prompt, "
    "and the mask behind it",
    modules=("data.format",),
    hints=(
        "`own` must stay as long as `ids`, to which `turn_ids` and then `result_ids` were added.",
        "The end token is the last one of `turn_ids` in the last turn. The policy chose to stop there.",
    ),
    mistakes=(
        Mistake(
            "results are learned",
            RIGHT,
            "own += [1] * len(turn_ids) + [1] * len(result_ids)",
            "You marked the results, too: the model is taught to write search results itself, and will make them up.",
        ),
        Mistake(
            "a turn's last token is not learned",
            RIGHT,
            "own += [1] * (len(turn_ids) - 1) + [0] * (len(result_ids) + 1)",
            "You left out the last token of every turn, which ends a call's closing tag or the answer. The policy "
            "wrote it: untaught, it would not learn when to stop and wait for the tool.",
        ),
        Mistake(
            "the result's tags are learned",
            RIGHT,
            "own += [1] * len(turn_ids) + [int(not 8 <= n < len(result_ids) - 9) for n in range(len(result_ids))]",
            "You marked the result's tags as the policy's. The environment writes <result> and </result>, as it writes "
            "what stands between them: a policy that learns them makes up results.",
        ),
        Mistake(
            "the other way round",
            RIGHT,
            "own += [0] * len(turn_ids) + [1] * len(result_ids)",
            "You exchanged the two: the model learns to write what the world answers, and nothing of what it chose.",
        ),
        Mistake(
            "the end is not learned",
            RIGHT,
            "own += [1] * (len(turn_ids) - (result is None)) + [0] * (len(result_ids) + (result is None))",
            "You left the end token out: nothing teaches the model to stop. It shows in an hour, as trajectories that "
            "run out of tokens, and not now.",
        ),
        Mistake(
            "shifted by one",
            RIGHT,
            "own += ([0] + [1] * len(turn_ids) + [0] * len(result_ids))[: len(turn_ids) + len(result_ids)]",
            "Your mask is shifted by one: the first token of each result is learned, the first of each turn is not. "
            "Whether a token is learned is said at the token itself; what predicts it is settled later.",
        ),
        Mistake(
            "only the answer",
            RIGHT,
            "own += [int(result is None)] * len(turn_ids) + [0] * len(result_ids)",
            "You learn from the last turn alone. The calls were the policy's choice as well, and the better part of "
            "it.",
        ),
    ),
)
