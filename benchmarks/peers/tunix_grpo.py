"""GRPO steps of tunix's GRPOLearner on the CPU in float32, its own rollouts; prints one JSON line.

    pip install google-tunix==0.1.7
    python benchmarks/peers/tunix_grpo.py --model=smollm2 --data=prompts.jsonl --steps=3

Everything the command line does not name stays at tunix's default, but for what makes peers do the
same work: no reference (beta 0), temperature 1, parameters and compute in float32. All parameters
are trained. The reward is that of `trl_grpo.py`, and so is what is printed; `rollout_seconds` is
the time of `RLCluster.generate`.
"""

import json
import os
import sys
import time

import measure
import tunix_rollout


def letters(prompts, completions, **_):
    """The reward."""
    return [text.count("e") / max(sum(map(str.isalpha, text)), 1) for text in completions]


class Texts(tunix_rollout.Ids):
    """Token ids as numbers going in, text coming out: rewards read it."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer.eos_token_id, tokenizer.unk_token_id)
        self.tokenizer = tokenizer

    def decode(self, ids, **_) -> str:
        """An answer's text."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def main() -> None:
    """One run."""
    args = tunix_rollout.arguments(__doc__ or "")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    printed, sys.stdout = sys.stdout, sys.stderr
    from importlib.metadata import version

    import jax
    import numpy as np
    import optax
    from transformers import AutoTokenizer
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    count = args.batch_size * args.steps
    prompts = tunix_rollout.prompts_of(tokenizer, args.data, count)
    longest = 1 << (max(map(len, prompts)) - 1).bit_length()
    model, _ = tunix_rollout.model_of(args.model)
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=kinds, devices=jax.devices()[:1])
    cluster = RLCluster(
        actor=model,
        tokenizer=Texts(tokenizer),
        cluster_config=ClusterConfig(
            role_to_mesh={role: mesh for role in (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)},
            rollout_config=RolloutConfig(
                max_tokens_to_generate=args.max_tokens,
                max_prompt_length=longest,
                kv_cache_size=longest + args.max_tokens,
                temperature=1.0,
                eos_tokens=[tokenizer.eos_token_id],
            ),
            training_config=RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0)
                ),
                eval_every_n_steps=count,
                max_steps=args.steps,
                mini_batch_size=args.batch_size,
                train_micro_batch_size=args.batch_size,
            ),
        ),
    )
    learner = GRPOLearner(cluster, GRPOConfig(num_generations=args.n, beta=0.0), letters)
    rollouts, clock, generate = [], [], cluster.generate

    def timed(*given, **named):
        clock.append((time.perf_counter(), measure.cpu_seconds()))
        said = generate(*given, **named)
        spent = [now - then for now, then in zip(tick(), clock[-1], strict=True)]
        # What ends an answer is cut off by the sampler, and was written.
        lengths = [min(len(tokens) + 1, args.max_tokens) for tokens in said.tokens]
        rollouts.append((*spent, lengths))
        return said

    def tick():
        return time.perf_counter(), measure.cpu_seconds()

    cluster.generate = timed
    asked = np.array([" ".join(map(str, ids)) for ids in prompts])
    learner.train([{"prompts": batch} for batch in asked.reshape(args.steps, -1)])
    jax.block_until_ready(jax.live_arrays())
    clock.append(tick())
    result = dict(
        peer="tunix",
        version=version("google-tunix"),
        train="full",
        **measure.of_steps(rollouts, clock, args),
    )
    print(json.dumps(result), file=printed)


if __name__ == "__main__":
    main()
