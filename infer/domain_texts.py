"""Held-out text of three domains, the same for the same versions of Python and simple-icd-10-cm."""

import importlib
import inspect
import random
from collections.abc import Callable

import numpy as np

_MODULES = ("argparse", "statistics", "zipfile", "ipaddress", "tarfile")
_TOPICS = ("import", "class", "with", "exceptions", "naming", "integers", "formatstrings", "types", "specialnames")


def domain_rows(encode: Callable[[str], list[int]], n_rows: int, length: int) -> dict[str, np.ndarray]:
    """Domain -> token ids int32 [n_rows, length + 1]: `length` positions to predict from, each with what follows."""
    rows = {}
    for name, text in domain_texts().items():
        ids = encode(text[: 8 * n_rows * (length + 1)])
        if len(ids) < n_rows * (length + 1):
            raise ValueError(f"the text '{name}' has {len(ids)} tokens; {n_rows * (length + 1)} are wanted")
        rows[name] = np.asarray(ids[: n_rows * (length + 1)], np.int32).reshape(n_rows, length + 1)
    return rows


def domain_texts() -> dict[str, str]:
    """Titles of diagnoses, the standard library's source, and the prose of Python's manual."""
    import simple_icd_10_cm as icd

    codes = icd.get_all_codes(with_dots=True)
    random.Random(0).shuffle(codes)
    topics = importlib.import_module("pydoc_data.topics").topics
    return {
        "medical titles": "\n".join(f"{code}: {icd.get_description(code)}" for code in codes[:4000]),
        "Python source": "\n".join(inspect.getsource(importlib.import_module(name))[:14_000] for name in _MODULES),
        "manual prose": "\n".join(topics[name] for name in _TOPICS),
    }
