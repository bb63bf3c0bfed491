"""The prompts that a pack's route key is fitted on: hand-written ones and a choice of its training prompts.

    python train/data/mix_route_prompts.py DIR

DIR is a built data set; its name, or `name` in its meta.json, says whose prompts of route_prompts/ are added. Writes
DIR/route.jsonl. Training prompts alone would teach the key their phrasings.
"""

import argparse
import json
import random
from pathlib import Path

from split_files import encode_lines

from mbjax.errors import InputError, MbjaxError
from mbjax.io.files import atomic_write

SEED = 20
CHOSEN = 700  # training prompts
WRITTEN = Path(__file__).parent / "route_prompts"


def prompts_of(path: Path) -> list[str]:
    """The prompts of a JSONL file, none twice. Raises InputError where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # JSON leaves U+2028 as it is
        return list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: holds no prompts ({error}); build the data set first") from error


def mixed(written: list[str], training: list[str], *, seed: int = SEED, chosen: int = CHOSEN) -> list[str]:
    """All hand-written prompts and `chosen` of the training prompts, shuffled."""
    rng = random.Random(seed)
    found = list(dict.fromkeys([*written, *rng.sample(training, min(chosen, len(training)))]))
    rng.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    directory = parser.parse_args().directory
    try:
        training = prompts_of(directory / "train.jsonl")
        name = json.loads((directory / "meta.json").read_text(encoding="utf-8"))["name"]
        found = mixed(prompts_of(WRITTEN / f"{name}.jsonl"), training)
        with atomic_write(directory / "route.jsonl") as file:
            file.write(encode_lines([{"prompt": prompt} for prompt in found]))
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    print(f"{directory / 'route.jsonl'}: {len(found)} prompts")


if __name__ == "__main__":
    main()
