"""The embedded demo's tasks, generated from a seed; its tiny model: `cold_flower.models.demo`.

Why fusing helps here. The words of the demo's language express sixteen hidden concepts;
a text mixes words of one concept with words of all others, and a task asks which of its
few concepts a text is about. An untrained body maps every word somewhere at random, so
its features barely separate anything. Finetuning on one task teaches the body which
words belong together, for the two to four concepts of that task; the words that the
other tasks use are learned by the other contributors. Averaging the bodies collects
these lessons: the fused base groups the words of all seen concepts, which serves the
seen tasks (from a better start) and the unseen ones (other mixtures of the same
concepts). It is the paper's claim, on data where one can see why.
"""

import random
from typing import Any

from cold_flower.seeds import derive

CONCEPTS = 16
WORDS = 24  # of each concept
SIZES = {"train": 400, "test": 400}
LENGTH = (10, 18)  # words of a text
SIGNAL = 0.25  # share of a text's words that come from its class's concept

# Which concepts a task tells apart: its classes, in the order of its labels.
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
    """Return each concept's words: two syllables, every word of one concept only."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = [first + second for first in syllables for second in syllables]
    random.Random(derive(0, "demo", "vocabulary")).shuffle(words)
    return [words[i * WORDS : (i + 1) * WORDS] for i in range(CONCEPTS)]


def columns(task: str, split: str, seed: int) -> dict[str, list[Any]]:
    """Generate a task's rows: columns ``text`` and ``label``."""
    concepts = vocabulary()
    draw = random.Random(derive(seed, "demo", task, split))
    texts, labels = [], []
    for _ in range(SIZES[split]):
        label = draw.randrange(len(TASKS[task]))
        own = concepts[TASKS[task][label]]
        length = draw.randint(*LENGTH)
        words = [
            draw.choice(own if draw.random() < SIGNAL else draw.choice(concepts))
            for _ in range(length)
        ]
        texts.append(" ".join(words))
        labels.append(label)
    return {"text": texts, "label": labels}
