"""Both held-out sets: sizes, languages, and every reference solution passes its own assertions."""
import unittest
from concurrent.futures import ThreadPoolExecutor

import support
from sandbox import check

SIZES = {"heldout": {"en": 82, "ar": 82}, "handwritten": {"en": 60, "ar": 50}}


class HeldOutSetTest(unittest.TestCase):
    def test_sizes(self):
        for name, sizes in SIZES.items():
            problems = support.read_set(name)
            self.assertEqual({lang: sum(p["lang"] == lang for p in problems) for lang in sizes}, sizes)
            self.assertEqual(len({p["task_id"] for p in problems}), len(problems))
            self.assertEqual(len({p["prompt"] for p in problems}), len(problems))

    def test_reference_solutions_pass(self):
        problems = [problem for name in SIZES for problem in support.read_set(name)]
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda p: check(p, p["canonical_solution"], wall_seconds=30), problems))
        failed = [(p["task_id"], o.reason) for p, o in zip(problems, outcomes) if not o.passed]
        self.assertEqual(failed, [])

    def test_an_empty_body_passes_nowhere(self):
        problems = [problem for name in SIZES for problem in support.read_set(name)]
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda p: check(p, "    return None", wall_seconds=30), problems))
        self.assertEqual([p["task_id"] for p, o in zip(problems, outcomes) if o.passed], [])


if __name__ == "__main__":
    unittest.main()
