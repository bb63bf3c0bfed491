"""What a bag of n-grams makes of texts whose group it has not seen."""

import numpy as np
from unseen_guesses import unseen_guesses

WORDS = {"fish": "herring cod salmon", "tree": "oak birch willow", "tool": "hammer chisel plane"}


def test_guesses_follow_what_other_groups_say_and_not_the_text_s_own_label():
    texts, labels, groups = [], [], []
    for kind, words in WORDS.items():
        for group in range(20):
            texts.append(f"{words} number {group}")
            labels.append(kind)
            groups.append(f"{kind} {group}")
    labels[0] = "tree"  # a text on fish that its group alone calls a tree
    guesses = unseen_guesses(texts, labels, groups, seed=0)
    assert guesses.shape == (60, 3) and np.allclose(guesses.sum(axis=1), 1)
    assert guesses[0].argmax() == sorted(WORDS).index("fish")
    assert (guesses[20:].argmax(axis=1) == np.repeat([2, 1], 20)).all()
    assert np.array_equal(guesses, unseen_guesses(texts, labels, groups, seed=0))
