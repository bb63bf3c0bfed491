"""Makes tests/golden: logits of the reference implementations, so that plain pytest checks parity without them.

    python infer/make_golden.py            needs the extra `reference`, takes about a minute

Tiny models: each as transformers saves it (bfloat16), with the float32 logits that transformers computes from it.
The default base: llama.cpp's token ids of three prompts, and the largest float32 logits at some of their positions,
from transformers' own reading of the same GGUF file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from mixed_text import mixed_lines

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
BASE = "smollm2-135m"
VOCAB, N_TOKENS = 96, 24
N_POSITIONS, N_TOP = 12, 20
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
CODE = 'def fibonacci(n: int) -> list[int]:\n    """The first n numbers."""\n    a, b = 0, 1\n    numbers = []\n'
PROSE = """The heart is a muscular organ that pumps blood through the body. In an adult at rest it beats 60 to 100 times
a minute; during exercise it may reach 180. Das Herz schlägt. 心臓は血液を送り出す。 ❤️
"""


def tiny(name: str) -> None:
    """One tiny model's directory: config.json and model.safetensors by transformers, and expected.npz."""
    import torch
    from reference_models import logits_of, random_model, read_model

    directory = GOLDEN / name
    random_model(name, VOCAB).to(torch.bfloat16).save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, N_TOKENS), dtype=np.int32)
    np.savez_compressed(
        directory / "expected.npz", tokens=tokens, logits=logits_of(read_model(directory, "float32"), tokens)
    )


def default_base(gguf: Path) -> dict[str, Any]:
    """What the references make of the default base's file."""
    import llama_cpp
    import torch
    from reference_models import logits_of
    from transformers import AutoModelForCausalLM

    llama = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    template = llama.metadata["tokenizer.chat_template"]
    texts = [_render(template), CODE, PROSE]
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32).eval()
    prompts = []
    for text in texts:
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        prompts.append({"text": text, "ids": ids, "positions": _largest(logits_of(model, [ids])[0])})
    lines = mixed_lines()
    ids = [llama.tokenize(line.encode(), add_bos=False, special=False) for line in lines]
    return {"base": BASE, "prompts": prompts, "mixed_lines": len(lines), "mixed_ids_sha256": ids_digest(ids)}


def ids_digest(ids: list[list[int]]) -> str:
    """sha256 over one line of decimal ids per text."""
    return hashlib.sha256("\n".join(" ".join(map(str, line)) for line in ids).encode()).hexdigest()


def _render(template: str) -> str:
    from jinja2 import Template

    return Template(template, trim_blocks=True, lstrip_blocks=True).render(messages=CHAT, add_generation_prompt=True)


def _largest(logits: np.ndarray) -> list[dict[str, Any]]:
    """Of logits [T, V]: at evenly spread positions, the last among them, the largest values and their tokens."""
    chosen = []
    for at in np.linspace(0, len(logits) - 1, min(N_POSITIONS, len(logits))).astype(int):
        tokens = np.argsort(-logits[at])[:N_TOP]
        values = [round(float(value), 5) for value in logits[at][tokens]]
        chosen.append({"at": int(at), "tokens": tokens.tolist(), "logits": values})
    return chosen


def main() -> None:
    from reference_models import MODELS

    from mbjax.io.pull import pull

    for name in MODELS:
        tiny(name)
    path = GOLDEN / f"{BASE}.json"
    path.write_text(json.dumps(default_base(pull(BASE))) + "\n")


if __name__ == "__main__":
    main()
