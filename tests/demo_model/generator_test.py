"""The task generator: repeatable, valid Python, and apart from both held-out sets."""
import random
import re
import unittest
from itertools import islice

import support
from generator import TEMPLATES, draw, training_stream
from grammar import expand, fill
from names import ADJECTIVES, COMMON, GENERIC_FUNCTIONS, NOUNS, VERBS
from pipelines import PIPELINES

STREAM_TASKS = 20000


def skeleton(prompt):
    """The docstring with identifiers of the signature, literals and numbers replaced, to compare wordings."""
    signature, doc = prompt.split("\n", 1)
    for name in re.findall(r"\w+", signature)[1:]:
        doc = re.sub(rf"\b{name}\b", "NAME", doc)
    doc = re.sub(r"'[^']*'", "TEXT", doc)
    return re.sub(r"\s+", " ", re.sub(r"-?\d+", "N", doc)).strip(' ".').lower()


class StreamTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tasks = list(islice(training_stream(5), STREAM_TASKS))

    def test_repeats_with_the_same_seed(self):
        again = [task.prompt for task in islice(training_stream(5), 500)]
        self.assertEqual(again, [task.prompt for task in self.tasks[:500]])
        self.assertNotEqual(again, [task.prompt for task in islice(training_stream(6), 500)])

    def test_every_task_compiles(self):
        for task in self.tasks:
            compile(f"{task.prompt}\n{task.answer}\n", task.template, "exec")

    def test_no_wording_keeps_its_markup(self):
        for task in self.tasks:
            doc = re.sub(r"'[^']*'", "", task.doc)
            self.assertNotRegex(doc, r"[<>|${}]", task.template)

    def test_never_yields_a_reserved_combination(self):
        self.assertFalse(any(task.reserved for task in self.tasks))

    def test_uses_every_template_and_both_languages(self):
        self.assertEqual({task.template for task in self.tasks}, {name for name, _ in TEMPLATES} | set(PIPELINES))
        arabic = sum(task.language == "ar" for task in self.tasks) / STREAM_TASKS
        self.assertAlmostEqual(arabic, 0.4, delta=0.02)

    def test_holds_no_problem_of_the_held_out_sets(self):
        prompts = {task.prompt for task in self.tasks}
        programs = {(task.function, tuple(name for name, _ in task.arguments), task.answer) for task in self.tasks}
        for name in ("heldout", "handwritten"):
            for problem in support.read_set(name):
                self.assertNotIn(problem["prompt"], prompts)
                signature = re.findall(r"(\w+)(?:: [\w\[\]]+)?(?=[,()])", problem["prompt"].split("\n")[0])
                self.assertNotIn((signature[0], tuple(signature[1:]), problem["canonical_solution"]), programs)

    def test_shares_no_wording_with_the_handwritten_set(self):
        known = {skeleton(task.prompt) for task in self.tasks}
        shared = [p["task_id"] for p in support.read_set("handwritten") if skeleton(p["prompt"]) in known]
        self.assertEqual(shared, [])


class ReservedTest(unittest.TestCase):
    def test_about_one_combination_in_24_is_reserved(self):
        rng = random.Random(1)
        share = sum(draw(rng).reserved for _ in range(6000)) / 6000
        self.assertAlmostEqual(share, 1 / 24, delta=0.01)

    def test_the_wording_does_not_decide(self):
        task = draw(random.Random(2))
        before = task.reserved
        task.doc, task.prompt = "Other words.", "def other(): pass"
        self.assertEqual(task.reserved, before)


class HandwrittenSetTest(unittest.TestCase):
    def test_uses_no_name_of_the_generator(self):
        pools = set(NOUNS) | set(VERBS) | set(ADJECTIVES) | set(GENERIC_FUNCTIONS)
        pools |= {name for names in COMMON.values() for name in names}
        pools |= {name for _, entry in TEMPLATES for name in entry.one("names").split()}
        for problem in support.read_set("handwritten"):
            names = re.findall(r"\w+", problem["prompt"].split("\n")[0])[1:]
            self.assertEqual([name for name in names if name in pools], [], problem["task_id"])


class GrammarTest(unittest.TestCase):
    def test_expands_nested_alternatives(self):
        readings = {expand(random.Random(seed), "<a|b <c|d>>", "en") for seed in range(50)}
        self.assertEqual(readings, {"a", "b c", "b d"})

    def test_fills_slots_with_attribute_and_operand(self):
        self.assertEqual(fill("{P.not xs} {k: v}", lambda *slot: repr(slot)), "('P', 'not', 'xs') {k: v}")


if __name__ == "__main__":
    unittest.main()
