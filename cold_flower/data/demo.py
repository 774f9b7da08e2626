"""The embedded demo's tasks, generated from a seed; its model is `cold_flower.models.demo`.

Why fusing helps here. The words of the demo's language express sixteen hidden concepts. A text
mixes words of one concept with words of all others, and a task asks which of its two to four
concepts a text is about.

An untrained body places every word at random, so its features separate hardly anything.
Finetuning on one task teaches the body which words belong together, but only for that task's
concepts; the other contributors learn those of theirs. Averaging the bodies collects what they
learned: the fused base groups the words of all seen concepts. That helps the seen tasks, which
start from a better place, and the unseen ones, which mix the same concepts anew. It is the
paper's claim, on data where one can see why.
"""

import random
from typing import Any

from cold_flower.seeds import derive

CONCEPTS = 16
WORDS = 24  # of each concept
SIZES = {"train": 400, "test": 400}  # examples of a task
LENGTH = (10, 18)  # words of a text, from and to
SIGNAL = 0.25  # share of a text's words that come from its class's concept

# The concepts that a task tells apart, in the order of its labels.
TASKS = {
    "weather": (0, 1, 2, 3),
    "kitchen": (4, 5, 6),
    "sports": (7, 8, 9, 10),
    "travel": (11, 12),
    "music": (13, 14, 15),
    "garden": (0, 4, 8, 12),
    "office": (1, 5, 9, 13),
    "cinema": (2, 6, 10, 14),
    "harbour": (3, 7, 11, 15),
    "market": (0, 5, 10, 15),
    "forest": (1, 6, 11, 12),
    "school": (2, 7, 13),
}


def vocabulary() -> list[list[str]]:
    """Return each concept's words. Each has two syllables and belongs to one concept only."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = [first + second for first in syllables for second in syllables]
    random.Random(derive(0, "demo", "vocabulary")).shuffle(words)
    return [words[i * WORDS : (i + 1) * WORDS] for i in range(CONCEPTS)]


def columns(task: str, split: str, seed: int) -> dict[str, list[Any]]:
    """Generate a task's rows, as columns ``text`` and ``label``."""
    words_of = vocabulary()
    draw = random.Random(derive(seed, "demo", task, split))
    texts, labels = [], []
    for _ in range(SIZES[split]):
        label = draw.randrange(len(TASKS[task]))
        own_words = words_of[TASKS[task][label]]
        length = draw.randint(*LENGTH)
        words = [
            draw.choice(own_words if draw.random() < SIGNAL else draw.choice(words_of))
            for _ in range(length)
        ]
        texts.append(" ".join(words))
        labels.append(label)
    return {"text": texts, "label": labels}
