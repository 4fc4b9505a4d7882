#!/usr/bin/env python3
"""The judge of histories sees every kind of broken promise that is planted, and nothing in a history that keeps them."""
import copy
import unittest

import history
from history import COMPLETE, CUT, ERROR, LEFT, Outcome, Page

BODY = {"messages": "x", "n": 2, "stream": True}
PAGE = """# HELP quicksilver_requests_total x
quicksilver_requests_total{code="200",finish_reason="stop",route="/v1"} %d
quicksilver_requests_total{code="503",finish_reason="",route="/v1"} %d
quicksilver_generation_tokens_total{model="demo"} %d
quicksilver_prompt_tokens_total{model="demo"} %d
quicksilver_num_requests_running %d
"""


def good():
    return Outcome(BODY, status=200, ends=[COMPLETE], deltas=[(1, 0, "ab"), (2, 1, "x"), (4, 0, "c")],
                   finished=[(0, "stop"), (1, "length")], usage={"completion_tokens": 3, "prompt_tokens": 7})


def refused():
    return Outcome(BODY, status=503, ends=[ERROR], error={"code": "no_ready_worker"})


REFERENCE = {history.key_of({**BODY, "stream": False}): history.answer_of(good())}


class Judge(unittest.TestCase):
    def found(self, **changes):
        outcome = copy.deepcopy(good())
        for name, value in changes.items():
            setattr(outcome, name, value)
        return "\n".join(history.violations([good(), outcome], REFERENCE))

    def test_a_kept_promise_is_no_violation(self):
        self.assertEqual(history.violations([good(), refused()], REFERENCE), [])
        self.assertEqual(self.found(ends=[CUT], deltas=[(1, 0, "a")], finished=[], usage=None), "")
        self.assertEqual(self.found(ends=[LEFT], deltas=[], finished=[], usage=None), "")

    def test_a_request_without_an_end(self):
        self.assertIn("ended 0 times", self.found(ends=[]))

    def test_a_request_that_ends_twice(self):
        self.assertIn("ended 2 times", self.found(ends=[COMPLETE, ERROR]))
        self.assertIn("after the end", self.found(after_finish=1))
        self.assertIn("finished twice", self.found(finished=[(0, "stop"), (1, "length"), (1, "length")]))

    def test_a_clean_end_half_way(self):
        self.assertIn("a clean end", self.found(finished=[(0, "stop")]))
        self.assertIn("a clean end", self.found(status=503))

    def test_an_error_that_says_nothing(self):
        self.assertIn("says nothing", self.found(ends=[ERROR], error={}, deltas=[]))

    def test_a_delta_that_is_lost_repeated_or_out_of_order(self):
        for deltas in ([(1, 0, "ab"), (2, 1, "x")], [(1, 0, "ab"), (2, 1, "x"), (3, 0, "c"), (4, 0, "c")],
                       [(1, 0, "c"), (2, 1, "x"), (3, 0, "ab")]):
            self.assertIn("choice 0", self.found(deltas=deltas))

    def test_a_choice_that_never_came(self):
        self.assertIn("choices without text: [1]", self.found(deltas=[(1, 0, "abc")]))

    def test_other_bytes_in_an_answer_that_broke_off(self):
        self.assertIn("no beginning", self.found(ends=[CUT], deltas=[(1, 0, "b")]))

    def test_another_reason_or_usage(self):
        self.assertIn("finish reasons", self.found(finished=[(0, "stop"), (1, "stop")]))
        self.assertIn("usage", self.found(usage={"completion_tokens": 4, "prompt_tokens": 7}))

    def test_a_canary_of_another_tenant(self):
        theirs = good()
        theirs.tenant = "b"
        self.assertEqual(history.violations([theirs], canaries={"b": "bc"}), [])
        self.assertIn("canary of 'a'", history.violations([theirs], canaries={"a": "bc"})[0])

    def test_the_longest_silence(self):
        self.assertEqual(good().stall(), 2)

    def test_an_undisturbed_request_must_complete(self):
        with self.assertRaises(AssertionError):
            history.answer_of(refused())


class Counters(unittest.TestCase):
    def wrong(self, *after, outcomes=None):
        return list(history.wrong_counters(outcomes or [good(), refused()], [Page(PAGE % (5, 1, 100, 10, 0))],
                                           [Page(PAGE % (*after, 0))]))

    def test_sums_that_agree(self):
        self.assertEqual(self.wrong(6, 2, 103, 17), [])
        self.assertEqual(self.wrong(6, 1, 103, 17, outcomes=[good()]), [])

    def test_sums_that_do_not(self):
        self.assertIn("of 503", self.wrong(6, 1, 103, 17)[0])
        self.assertIn("of 200", self.wrong(5, 2, 103, 17)[0])
        self.assertIn("generation_tokens", self.wrong(6, 2, 102, 17)[0])
        self.assertIn("generation_tokens", self.wrong(6, 1, 104, 17, outcomes=[good()])[0])
        self.assertIn("prompt_tokens", self.wrong(6, 2, 103, 16)[0])

    def test_a_gauge_that_does_not_rest(self):
        self.assertEqual(list(history.not_idle([Page(PAGE % (0, 0, 0, 0, 0))])), [])
        self.assertIn("num_requests_running is 1", list(history.not_idle([Page(PAGE % (0, 0, 0, 0, 1))]))[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
