"""PEFT's side of `compare_peft.py`: LoRA on all linear maps in torch, as its users train it."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from training_plan import Plan
from training_worker import ALPHA, CLIP, DECAY, RANK, RATE, WARMUP, memory, serve
from transformers import LlamaForCausalLM

_IGNORED = -100  # the label that transformers leaves out of the loss


class PeftTrainer:
    """Batches of `batch` examples of like length, padded to their longest; gradients summed up to a whole step."""

    def __init__(self, plan: Plan, folder: Path, batch: int) -> None:
        self._plan, self._folder, self._batch = plan, folder, batch
        self._model: Any = None

    def prepare(self, steps: int) -> float:
        torch.manual_seed(0)
        base = LlamaForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        base.config.use_cache = False
        lora = peft.LoraConfig(
            r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        self._model = peft.get_peft_model(base, lora)
        self._model.train()
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda i: _rate(i, steps))
        return 0.0

    def step(self, number: int) -> float:
        plan = self._plan
        which = plan.examples_of(number)
        which = which[np.argsort(plan.starts[which + 1] - plan.starts[which], kind="stable")]
        n_scored = sum(int(plan.scored[plan.starts[i] : plan.starts[i + 1]].sum()) for i in which)
        total = 0.0
        for at in range(0, len(which), self._batch):
            inputs = _padded(plan, which[at : at + self._batch])
            loss = self._model(**inputs, num_items_in_batch=n_scored).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in self._model.parameters() if p.requires_grad], CLIP)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        return total

    def save(self, folder: Path) -> None:
        self._model.save_pretrained(folder)


def _padded(plan: Plan, which: np.ndarray) -> dict[str, torch.Tensor]:
    width = int((plan.starts[which + 1] - plan.starts[which]).max())
    ids, mask = (np.zeros((len(which), width), np.int64) for _ in range(2))
    labels = np.full((len(which), width), _IGNORED, np.int64)
    for row, i in enumerate(which):
        own = slice(plan.starts[i], plan.starts[i + 1])
        n = own.stop - own.start
        ids[row, :n], mask[row, :n] = plan.ids[own], 1
        labels[row, :n] = np.where(plan.scored[own], plan.ids[own], _IGNORED)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


def _rate(step: int, steps: int) -> float:
    """Warm-up and cosine to a tenth, as `mbjax.training.optimiser` has it."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return step / warmup
    share = min(1.0, (step - warmup) / max(1, max(steps, warmup + 1) - warmup))
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))


def main() -> None:
    imported = memory()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the plan and the base in Hugging Face's form are")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plan = Plan.load(arguments.folder)
    serve(PeftTrainer(plan, arguments.folder, arguments.batch), plan, imported)


if __name__ == "__main__":
    main()
