"""Draws the held-out problems of reserved combinations and freezes their assertions.

    python3 heldout.py --count 164 > heldout.jsonl

Languages alternate; no template repeats before all were used.  The assertions come from running the reference body on
random inputs that lie close to the task's own constants.
"""
import argparse
import json
import random
import re

from generator import TEMPLATES, draw
from names import NOUNS
from pipelines import PIPELINES
from sandbox import check

ASSERTIONS = 8
TRIES_MAX = 200000
SAMPLE_WORDS = ["level", "noon", "Radar", "SKY", "123", "x", "", " pad ", "two words", "KITE", "abba", "2026"]


def numbers_near(constants):
    """Integers on and beside the task's integer constants, their multiples included."""
    values = [int(c) for c in constants if re.fullmatch(r"-?\d+", c)]
    return [0] + [v + d for v in values for d in (-1, 0, 1)] + [2 * v for v in values] + [3 * v for v in values]


def sample_number(rng, near):
    """A small number, or one near a constant."""
    return rng.choice(near) if near and rng.random() < 0.45 else rng.randint(-30, 60)


def sample_word(rng, texts):
    """A word, often one that starts with, ends in or is one of the texts."""
    word = rng.choice(rng.choice([NOUNS, SAMPLE_WORDS]))
    if texts and rng.random() < 0.5:
        text = rng.choice(texts)
        return rng.choice([text, text + word, word + text, word + text + word])
    return word.upper() if rng.random() < 0.15 else word


def sample_input(rng, kind, near, texts):
    """One argument value of the kind."""
    if kind == "int":
        return sample_number(rng, near)
    if kind == "pos":
        return rng.choice([v for v in near if 0 < v < 200] + [rng.randint(1, 40)] * 4)
    if kind == "small":
        return rng.randint(-5, 9)
    if kind in ("list", "nelist"):
        return [sample_number(rng, near) for _ in range(rng.randint(1 if kind == "nelist" else 0, 8))]
    if kind in ("words", "newords"):
        return [sample_word(rng, texts) for _ in range(rng.randint(1 if kind == "newords" else 0, 6))]
    if kind in ("str", "nestr"):
        text = rng.choice(["", " ", ""]).join(sample_word(rng, texts) for _ in range(rng.randint(0, 3)))
        return text or ("a" if kind == "nestr" else "")
    if kind in ("dict", "nedict"):
        keys = rng.sample(NOUNS, rng.randint(1, 5)) + texts
        chosen = rng.sample(keys, rng.randint(kind == "nedict", min(5, len(keys))))
        return {key: sample_number(rng, near) for key in chosen}
    raise ValueError(f"unknown kind {kind}")


def make_test(rng, task):
    """Assertions that freeze the reference body's results."""
    scope = {}
    exec(f"{task.prompt}\n{task.answer}\n", scope)  # our own reference, not a model's answer
    near = numbers_near(task.constants)
    texts = [c[1:-1] for c in task.constants if c.startswith("'")]
    lines = []
    for _ in range(ASSERTIONS):
        inputs = [sample_input(rng, kind, near, texts) for _, kind in task.arguments]
        shown = ", ".join(map(repr, inputs))  # before the call: the reference may change its inputs
        lines.append(f"assert {task.function}({shown}) == {scope[task.function](*inputs)!r}")
    return "\n".join(lines) + "\n"


def results_differ(test):
    """Whether the assertions expect more than one value, so that no constant passes."""
    return len({line.rsplit(" == ", 1)[1] for line in test.splitlines()}) > 1


def draw_problem(rng, number, template, language, seen):
    """A reserved task of the template whose prompt is new."""
    for _ in range(TRIES_MAX):
        task = draw(rng, language, template)
        if not task.reserved or task.prompt in seen:
            continue
        problem = {"task_id": f"Reserved/{number}", "lang": language, "template": task.template,
                   "entry_point": task.function, "prompt": task.prompt, "canonical_solution": task.answer,
                   "test": make_test(rng, task)}
        if results_differ(problem["test"]) and check(problem, task.answer).passed:
            seen.add(task.prompt)
            return problem
    raise RuntimeError(f"no reserved task of {template}")


def draw_problems(seed, count):
    """The held-out problems."""
    rng, seen = random.Random(seed), set()
    order = TEMPLATES + list(PIPELINES)
    rng.shuffle(order)
    return [draw_problem(rng, i, order[i % len(order)], "en" if i % 2 == 0 else "ar", seen) for i in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=164)
    parser.add_argument("--seed", type=int, default=20240)
    options = parser.parse_args()
    for problem in draw_problems(options.seed, options.count):
        print(json.dumps(problem, ensure_ascii=False))


if __name__ == "__main__":
    main()
