"""The project's questions, prompt, tools, limits and verifier in TRL's GRPOTrainer: for what outgrows one GPU.

    accelerate launch experiments/with_trl.py --model Qwen2.5-7B --data hotpotqa -- --use_vllm true --vllm_mode colocate

Before `--` stand flags of `train.py`, behind it those of TRL's `GRPOConfig`, which win; FSDP, DeepSpeed and vLLM are
its business (`pip install -r requirements-bench.txt`). Trajectories grow as for --algo grpo, with TRL's generation in
place of the `Sampler`. Lost are forks, the cache between turns, the packed tree; a cold start is made before.
"""

import sys
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.format import encode_prompt, may_close
from data.models import resolve_model
from eval import score_leaves
from rollout import Draw, grow_trees
from tools import Lent, load_task, make_sandbox
from train import read_flags

LOSSES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}


class Engine:
    """Stands in for `rollout.py:Sampler`: TRL writes the turns, and the project says where they end."""

    def __init__(self, trainer, tokenizer):
        self.trainer, self.tokenizer, self.vocab_size = trainer, tokenizer, len(tokenizer)
        self.end_ids, pieces = {tokenizer.eos_token_id}, tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.may_stop = self.end_ids | {t for t, piece in enumerate(pieces) if may_close(piece or "")}

    def prefill(self, prompts) -> None: ...

    def __call__(self, rows, temperature, on_stop) -> list:
        draw = Draw(self, rows, temperature, on_stop)
        turns, logprobs = self.trainer._generate_single_turn([row.ids for row in rows], None, {}, 1)
        for i, turn in enumerate(turns):
            for token, logprob in zip(turn, logprobs[i] if logprobs else [0.0] * len(turn)):
                if not draw.done[i]:
                    draw._note(i, int(token), float(logprob), 0.0)
        return draw.samples


def build(own: list[str], theirs: list[str]) -> GRPOTrainer:
    c = read_flags(["--algo", "grpo", *own])
    task, name = load_task(c, "train", None, make_sandbox(c), Lent()), resolve_model(c.model)
    tokenizer, questions = AutoTokenizer.from_pretrained(name), {q.question: q for q in task.questions}

    def rollout(texts: list[str], trainer) -> dict:
        """A trajectory for each question, which TRL repeats for as many leaves as it wants."""
        engine, prompts = Engine(trainer, tokenizer), [encode_prompt(tokenizer, text) for text in texts]
        trees = grow_trees(prompts, texts, engine, task.tools, replace(c, num_generations=1, num_initial=0))
        join = lambda part: [sum((part(node) for node in tree.nodes), []) for tree in trees]
        ids, mask = join(lambda n: n.ids + n.observation), join(lambda n: [1] * len(n.ids) + [0] * len(n.observation))
        logprobs = join(lambda n: n.logprobs + [0.0] * len(n.observation)) if trainer.use_vllm else None
        scores = [score_leaves(t, questions[q], tokenizer, c.reward_bonus)[0].reward for t, q in zip(trees, texts)]
        return dict(prompt_ids=prompts, completion_ids=ids, logprobs=logprobs, env_mask=mask, verdict=scores)

    # A trajectory's limit is the project's; TRL's holds for what it writes at once, which is a turn.
    flags = f"""--seed {c.seed} --max_steps {c.max_steps} --num_generations {c.num_generations} --beta {c.kl_coef}
        --per_device_train_batch_size {c.num_generations} --gradient_accumulation_steps {c.questions_per_step}
        --max_completion_length {c.max_turn_tokens} --temperature {c.temperature} --top_k 0 --epsilon {c.epsilon}
        --epsilon_high {c.epsilon_high} --loss_type {LOSSES[c.loss_type]} --learning_rate {c.learning_rate}""".split()
    (args,) = HfArgumentParser(GRPOConfig).parse_args_into_dataclasses([*flags, "--output_dir", c.output_dir, *theirs])
    lora = LoraConfig(r=c.lora_r, lora_alpha=2 * c.lora_r, target_modules="all-linear") if c.lora_r else None
    more = dict(args=args, processing_class=tokenizer, rollout_func=rollout, peft_config=lora)
    data = Dataset.from_list([{"prompt": question} for question in questions])
    return GRPOTrainer(name, lambda verdict, **_: verdict, train_dataset=data, **more)


if __name__ == "__main__":
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    build(sys.argv[1:cut], sys.argv[cut + 1 :]).train()
