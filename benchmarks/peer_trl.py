"""TRL's side of the update: `GRPOTrainer.train()` on the same frozen rollouts, fed by TRL's own `rollout_func`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Recorder
from benchmarks.ours import CLIP, LR
from benchmarks.shapes import Rollouts

VARIANTS = {
    "one batch": "all completions in one batch",
    "accumulated": "a quarter of the completions a batch, 4 batches a step",
    "checkpointed": "one batch, gradient checkpointing (TRL's default)",
    "compact head": "one batch; patched: the head at completion positions only, as TRL does on a GPU but not on a CPU",
}


def update_steps(folder: Path, rollouts: Rollouts, dtype: str, variant: str, warmup: int, steps: int) -> dict[str, Any]:
    """Optimizer steps of TRL on the rollouts; what `Recorder.results` says of them.

    A step begins when TRL's `_prepare_inputs` has generated, scored and padded the batch (none of which counts), and
    ends at its `on_step_end`: forward, backward, clipping, AdamW, and the metrics that TRL computes on the way.
    """
    # TRL and accelerate would import these, unused, because they are installed: some hundred MiB.
    sys.modules |= dict.fromkeys(("vllm", "deepspeed"))
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is marked experimental
    import torch
    import transformers.models.qwen3.modeling_qwen3
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    if variant == "compact head":
        utils._use_triton = lambda device: True  # the head's own kernel keeps asking the device
    recorder = Recorder(warmup, torch.cuda.is_available())
    batches = 4 if variant == "accumulated" else 1
    seen = {"tokens": 0, "losses": []}

    class Trainer(GRPOTrainer):
        """TRL's trainer, which tells the recorder when a step begins."""

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            inputs = super()._prepare_inputs(generation_batch)
            if self._step % batches == 0:
                seen["tokens"] = 0
                recorder.begin()
            seen["tokens"] += int(inputs["completion_mask"].sum())
            return inputs

    class End(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            recorder.end()

    def frozen(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """The rollouts in TRL's order of prompts: `prompts` holds each group's number, `group_size` times."""
        taken = dict.fromkeys(prompts, 0)
        rows = []
        for prompt in prompts:
            rows.append(int(prompt) * rollouts.group_size + taken[prompt])
            taken[prompt] += 1
        return {
            "prompt_ids": [rollouts.prompt_ids[row] for row in rows],
            "completion_ids": [rollouts.completion_ids[row] for row in rows],
            "logprobs": None,
            "frozen": [rollouts.rewards[row] for row in rows],
        }

    def reward(completions: list[str], frozen: list[float], **columns: Any) -> list[float]:
        return frozen

    num_rows = len(rollouts.rewards)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
            per_device_train_batch_size=num_rows // batches,
            gradient_accumulation_steps=batches,
            num_generations=rollouts.group_size,
            max_completion_length=max(map(len, rollouts.completion_ids)),
            max_steps=warmup + 1 + steps,
            loss_type="grpo",
            beta=0.0,  # no reference model
            num_iterations=1,  # old log-probs are the current ones, detached: no forward of their own
            temperature=1.0,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            bf16=dtype == "bfloat16",
            gradient_checkpointing=variant == "checkpointed",
            use_cpu=not recorder.cuda,
            shuffle_dataset=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=str(folder),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(num_rows // rollouts.group_size)]}),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            rollout_func=frozen,
            callbacks=[End()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {**recorder.results(), "num_tokens": seen["tokens"], "threads": torch.get_num_threads()}
