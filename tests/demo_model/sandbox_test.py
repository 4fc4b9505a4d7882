"""The sandbox: what must fail fails, and nothing reaches the disk or the network."""
import os
import tempfile
import time
import unittest

import support  # noqa: F401  (sets the path)
from sandbox import check, run_program

PROBLEM = {"prompt": 'def add(a, b):\n    """Add."""', "test": "assert add(2, 3) == 5\nassert add(0, 0) == 0\n"}


class CheckTest(unittest.TestCase):
    def test_passes_a_right_answer(self):
        self.assertTrue(check(PROBLEM, "    return a + b").passed)

    def test_fails_a_wrong_answer(self):
        outcome = check(PROBLEM, "    return a - b")
        self.assertEqual((outcome.passed, outcome.reason), (False, "AssertionError"))

    def test_fails_a_syntax_error(self):
        self.assertEqual(check(PROBLEM, "    return a +").reason, "SyntaxError")

    def test_fails_an_empty_answer(self):
        self.assertFalse(check(PROBLEM, "").passed)

    def test_fails_an_answer_that_leaves_before_the_assertions(self):
        self.assertEqual(check(PROBLEM, "    return 1\nraise SystemExit(0)").reason, "SystemExit")


class LimitsTest(unittest.TestCase):
    def test_kills_an_infinite_loop(self):
        began = time.monotonic()
        outcome = run_program("while True:\n    pass\n", wall_seconds=1.0)
        self.assertEqual((outcome.passed, outcome.reason), (False, "Timeout"))
        self.assertLess(time.monotonic() - began, 10)

    def test_limits_memory(self):
        self.assertEqual(run_program("x = 'a' * 10**10\n").reason, "MemoryError")

    def test_limits_recursion(self):
        self.assertEqual(run_program("def f():\n    f()\nf()\n").reason, "RecursionError")

    def test_discards_a_flood_of_output(self):
        self.assertTrue(run_program("print('x' * 10**6)\n").passed)


class IsolationTest(unittest.TestCase):
    def test_hides_open(self):
        self.assertEqual(run_program("open('x', 'w')\n").reason, "NameError")

    def test_writes_no_file_even_through_a_found_module(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "written")
            program = ("import collections\n"
                       "modules = collections._sys.modules\n"
                       f"modules['io'].open({path!r}, 'w').write('x')\n")
            self.assertFalse(run_program(program).passed)
            self.assertFalse(os.path.exists(path) and os.path.getsize(path))

    def test_opens_no_socket_even_through_a_found_importer(self):
        program = ("import collections\n"
                   "load = collections._sys.modules['builtins'].__import__\n"
                   "load('socket').create_connection(('127.0.0.1', 9))\n")
        self.assertFalse(run_program(program).passed)

    def test_refuses_other_modules(self):
        for name in ("os", "sys", "subprocess", "socket", "ctypes"):
            self.assertEqual(run_program(f"import {name}\n").reason, "ImportError", name)

    def test_allows_the_modules_answers_may_need(self):
        program = "import math, re\nassert math.isqrt(9) == 3 and re.sub('a', 'b', 'a') == 'b'\n"
        self.assertTrue(run_program(program).passed)


if __name__ == "__main__":
    unittest.main()
