"""One training step of this project against TRL's GRPOTrainer with `tools=`, in counts, memory and time.

    pip install -r requirements-bench.txt
    python tests/bench/trl_step.py [--rounds 9] [any flag of train.py]

Three arms: TRL; ours as GRPO (N = M); ours as ARPO. They have the same weights, questions, tools, verifier,
number of leaves, limits of length, optimizer and number of optimizer steps; a step is everything from
question to changed weights. The learning rate is so small that all arms keep sampling from the SFT model,
which keeps their lengths alike; the optimizer does its whole work all the same.

What TRL had to be given for it to play this game (each of them costs it nothing):
- the closing tool tags are end tokens, so that a turn stops where ours does (they are single tokens here);
- `max_new_tokens` of a turn through `generation_kwargs`; its own limit holds for the whole trajectory only;
- a chat template that writes calls and results as our tags, and a response template that reads them back;
- a reward function that cuts the completion's text at the results and hands the turns to our verifier;
- the micro-batch that was fastest for it here (`--trl_rows`), no gradient checkpointing, no logging.
"""

import argparse
import re
from dataclasses import replace

import numpy as np
from measure import Channel, compare, ratio, table

ARMS = ("TRL", "GRPO", "ARPO")
FIELDS = {
    "leaves": "leaves",
    "decoded": "tokens sampled",
    "prefilled": "tokens prefilled",
    "holes": "columns fed for nothing (padding, rows that had stopped)",
    "calls": "tool calls executed",
    "train_tokens": "tokens in the gradient pass",
    "train_columns": "the same with padding",
    "trained": "sampled tokens in the gradient pass",
}
LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}  # in TRL's words
TIMES = {"seconds": "seconds of a step", "cpu": "processor seconds of a step", "rollout": "seconds of its rollout"}


def settings(flags: list[str], algo: str):
    """What `python train.py` with these flags would use."""
    from train import read_flags

    config = read_flags(["--algo", algo, "--learning_rate", "1e-9", *flags])
    return replace(config, num_initial=0) if algo == "grpo" else config  # whatever the flags say of ARPO


def questions_of(step: int, config, questions: list) -> list:
    """In the order of the file, as TRL draws them when it does not shuffle."""
    first = step * config.questions_per_step
    return [questions[n % len(questions)] for n in range(first, first + config.questions_per_step)]


# ---------------------------------------------------------------------------------- ours


def serve_ours(config) -> None:
    import torch

    from advantage import ADVANTAGES
    from arpo import update
    from data.optimizer import Optimizer
    from eval import open_policy
    from sandbox import PythonSandbox
    from tools import load_task
    from train import grow_and_score

    policy, task = open_policy(config, config.lora_r), load_task(config, "train", None, PythonSandbox())
    optimizer, counts = Optimizer.of(policy.model, config), policy.sampler.counts
    channel = Channel()
    while True:
        step = channel.receive()
        counts.clear()
        task.tools.counts.clear()
        questions = questions_of(step, config, task.questions)
        keys = [f"{config.seed}/{step}/{question.id}" for question in questions]
        grown = grow_and_score(questions, keys, policy, task.tools, config)
        rollout_time = channel.lap()
        lengths = torch.stack([scored.tree.lengths() for scored in grown])
        advantages = ADVANTAGES[config.advantage](torch.stack([scored.rewards for scored in grown]), lengths)
        sums = update(policy.model, optimizer, [scored.tree for scored in grown], advantages, config)
        channel.send(
            {
                "rollout": rollout_time["seconds"],
                "leaves": sum(len(scored.scores) for scored in grown),
                "decoded": counts["decoded"],
                "prefilled": counts["prefilled"] + counts["refed"],
                "holes": counts["holes"],
                "calls": task.tools.counts.total(),
                "train_tokens": sums["train_tokens"],
                "train_columns": sums["train_tokens"],
                "trained": sums["trained"],
            }
        )


# ---------------------------------------------------------------------------------- TRL

# The project's tags as a chat template; after a result the policy goes on without a header.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|> {{ message.content }}"
    "{% elif message.role == 'tool' %}<result>{{ message.content }}</result>"
    "{% elif message.tool_calls %}{% for call in message.tool_calls %}"
    "<|assistant|><{{ call.function.name }}>{{ call.function.arguments | tojson }}</{{ call.function.name }}>"
    "{% endfor %}"
    "{% else %}<|assistant|>{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|assistant|>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ["<|assistant|>", "</result>"],
    "fields": {
        "tool_calls": {
            "open_pattern": r"<(?P<name>python|search|browse)>",
            "close_pattern": r"</(python|search|browse)>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": {"content": "{content}"}}},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}


def trl_tools(task, tokenizer, max_result_tokens: int) -> list:
    """The task's tools as functions in the form that TRL asks for; results are cut as ours are."""
    from data.format import encode_result

    def run(name: str, content: str) -> str:
        task.tools.counts[name, "ok"] += 1
        text = task.tools.tools[name](content).text
        return tokenizer.decode(encode_result(tokenizer, text, max_result_tokens)[1:-1])

    def python(content: str) -> str:
        """Runs Python.

        Args:
            content: The code.
        """
        return run("python", content)

    def search(content: str) -> str:
        """Searches the corpus.

        Args:
            content: The query.
        """
        return run("search", content)

    def browse(content: str) -> str:
        """Opens a page.

        Args:
            content: An address and words.
        """
        return run("browse", content)

    return [python, search, browse]


def trl_reward(tokenizer, questions, bonus: float):
    """The project's verifier on TRL's completions."""
    from data.format import read_answer
    from data.grading import accuracy, hierarchical_reward

    def reward(completions, completion_ids, number, **_) -> list[float]:
        rewards = []
        for messages, ids, n in zip(completions, completion_ids, number):
            turns = re.split(r"<result>.*?</result>", tokenizer.decode(ids), flags=re.DOTALL)
            ended = turns[-1].endswith(tokenizer.eos_token)
            answer = read_answer([*turns[:-1], turns[-1].removesuffix(tokenizer.eos_token)]) if ended else None
            right = accuracy(questions[n], answer) if answer else 0.0
            ran = {message["name"] for message in messages if message["role"] == "tool"}
            rewards.append(hierarchical_reward(right, answer is not None, ran, bonus))
        return rewards

    return reward


def serve_trl(config, rows: int) -> None:
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from data.format import closing_tags
    from eval import open_policy
    from sandbox import PythonSandbox
    from tools import load_task

    policy, task = open_policy(config, config.lora_r), load_task(config, "train", None, PythonSandbox())
    tokenizer = policy.tokenizer
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    stops = [tokenizer.eos_token, *closing_tags()]
    policy.model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(stops)
    data = [
        {"prompt": [{"role": "user", "content": question.question}], "number": n}
        for n, question in enumerate(task.questions)
    ]
    leaves = config.questions_per_step * config.num_generations
    theirs = GRPOConfig(
        output_dir=config.output_dir, use_cpu=policy.model.device.type == "cpu", bf16=False, seed=config.seed,
        num_generations=config.num_generations, per_device_train_batch_size=rows,
        gradient_accumulation_steps=leaves // rows, steps_per_generation=leaves // rows,
        max_completion_length=config.max_completion_length, max_tool_calling_iterations=config.max_tool_calls,
        generation_kwargs={"max_new_tokens": config.max_turn_tokens},
        temperature=config.temperature, top_p=1.0, top_k=0, beta=0.0, epsilon=config.epsilon,
        loss_type=LOSS_TYPES[config.loss_type],
        learning_rate=config.learning_rate, lr_scheduler_type="constant", adam_beta2=0.99, weight_decay=0.0,
        max_grad_norm=config.max_grad_norm, max_steps=10**6, gradient_checkpointing=False, shuffle_dataset=False,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    counts: dict[str, int] = {}

    def count(**more) -> None:
        for name, value in more.items():
            counts[name] = counts.get(name, 0) + int(value)

    class CountedTrainer(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest, **options):
            ids, logprobs = super()._generate_single_turn(prompt_ids, *rest, **options)
            fed, sampled = [list(map(len, lists)) for lists in (prompt_ids, ids)]
            columns = len(fed) * (max(fed) + max(sampled))
            count(prefilled=sum(fed), decoded=sum(sampled), holes=columns - sum(fed) - sum(sampled))
            return ids, logprobs

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            counts["rollout"] = channel.lap()["seconds"]
            return output

        def _compute_loss(self, model, inputs):
            masks = inputs["prompt_mask"], inputs["completion_mask"]
            count(
                leaves=len(masks[0]),
                train_tokens=sum(mask.sum() for mask in masks),
                train_columns=sum(mask.numel() for mask in masks),
                trained=(inputs["completion_mask"] * inputs["tool_mask"]).sum(),
            )
            return super()._compute_loss(model, inputs)

    class Steps(TrainerCallback):
        def on_step_begin(self, *_, **__):
            channel.receive()
            counts.clear()
            task.tools.counts.clear()

        def on_step_end(self, *_, **__):
            channel.send(counts | {"calls": task.tools.counts.total()})

    trainer = CountedTrainer(
        policy.adapter or policy.model, trl_reward(tokenizer, task.questions, config.reward_bonus), theirs,
        train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer, callbacks=[Steps()],
        tools=trl_tools(task, tokenizer, config.max_result_tokens),
    )  # fmt: skip
    channel = Channel()
    trainer.train()


# ---------------------------------------------------------------------------------- the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of every arm")
    parser.add_argument(
        "--bench_threads", type=int, default=1, help="threads of every arm; more are slower where cores are shared"
    )
    parser.add_argument("--trl_rows", type=int, default=12, help="leaves in a micro-batch of TRL")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    bench, flags = parser.parse_known_args()
    if not bench.arm:
        own = ["--trl_rows", str(bench.trl_rows), "--bench_threads", str(bench.bench_threads)]
        arms = compare(ARMS, __file__, own + flags, bench.rounds)
        print(report(arms, bench.rounds))
        return
    import torch

    torch.set_num_threads(bench.bench_threads)
    config = settings(flags, "arpo" if bench.arm == "ARPO" else "grpo")
    serve_trl(config, bench.trl_rows) if bench.arm == "TRL" else serve_ours(config)


def report(arms: dict, rounds: int) -> str:
    """Counts and memory by arm, then TRL's time over ours, pair by pair."""
    head = [f"a step, mean of {rounds}", *(f"ours, {name}" if name != "TRL" else name for name in arms)]
    rows = [[text, *(arm.total(field) / rounds for arm in arms.values())] for field, text in FIELDS.items()]
    rows.append(["peak memory above the loaded model, MB", *(arm.rows[-1]["peak_mb"] for arm in arms.values())])
    for field, text in TIMES.items():
        rows.append([f"{text}, median", *(f"{np.median(arm.values(field)):.2f}" for arm in arms.values())])
    for field, text in TIMES.items():
        faster = [ratio(arms["TRL"].values(field), arm.values(field)) for arm in arms.values()]
        rows.append([f"TRL's over this one's, {text}, median [range] of pairs", *faster])
    return table(head, rows)


if __name__ == "__main__":
    main()
