#!/usr/bin/env python3
"""Told to end, a coordinator or a group finishes what it has or hands it over, and says so meanwhile."""
import signal
import time
import unittest

from clients import Load
from cluster import PATIENCE, get, wait_for
from fleet import PROMPTS, SLOW, Fleet, chat, streamed
from history import COMPLETE

LAME_DUCK = 2


class CoordinatorDrains(unittest.TestCase):
    def streams(self, fleet, count):
        bodies = fleet.named([streamed(chat(PROMPTS[i % 4], **{**SLOW, "max_tokens": 320}, n=4, seed=i % 8)) for i in range(count)])
        fleet.reference(bodies)
        return bodies

    def test_fifty_streams_finish_while_it_is_first_a_lame_duck_and_then_refuses(self):
        with Fleet(coordinators=[{"flags": [f"--lame-duck-seconds={LAME_DUCK}"]}]) as fleet:
            coordinator = fleet.coordinators[0]
            bodies = self.streams(fleet, 50)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= 16, "streams running", 30)
                coordinator.send(signal.SIGTERM)
                told = time.monotonic()
                wait_for(lambda: get(coordinator.base + "/health/ready")[0] == 503, "unreadiness", 1)
                self.assertLess(time.monotonic() - told, 1 * PATIENCE)
                self.assertEqual(get(coordinator.base + "/health/live")[0], 200)
                load.send(fleet.api, [bodies[0]])  # Load balancers take their time to notice.
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            self.assertEqual(coordinator.process.process.wait(30 * PATIENCE), 0)
            self.assertGreaterEqual(time.monotonic() - told, LAME_DUCK)
            fleet.coordinators.clear()
            fleet.parts.remove(coordinator)
            fleet.judge(self, outcomes)

    def test_behind_the_lame_duck_new_requests_are_refused_and_running_ones_finish(self):
        with Fleet(groups=[{}]) as fleet:
            coordinator = fleet.coordinators[0]
            bodies = self.streams(fleet, 16)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= 8, "streams running", 30)
                coordinator.send(signal.SIGTERM)
                wait_for(lambda: '"draining"' in coordinator.text(), "the drain", 5)
                with Load() as late:
                    late.send(fleet.api, [bodies[0]])
                    refused = late.finish()[0]
                outcomes = load.finish()
            self.assertEqual((refused.status, refused.code), (503, "shutting_down"))
            self.assertIn("retry-after", refused.headers)
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            self.assertEqual(coordinator.process.process.wait(30 * PATIENCE), 0)

    def test_a_second_signal_ends_it_at_once_and_its_clients_see_a_cut(self):
        with Fleet(groups=[{}], coordinators=[{"flags": ["--lame-duck-seconds=30"]}]) as fleet:
            coordinator = fleet.coordinators[0]
            bodies = self.streams(fleet, 16)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= 8, "streams running", 30)
                coordinator.send(signal.SIGTERM)
                wait_for(lambda: get(coordinator.base + "/health/ready")[0] == 503, "unreadiness", 1)
                coordinator.send(signal.SIGTERM)
                self.assertEqual(coordinator.process.process.wait(2 * PATIENCE), 128 + signal.SIGTERM)
                outcomes = load.finish()
            self.assertLessEqual({o.end for o in outcomes}, {COMPLETE, "cut"})
            self.assertIn("cut", {o.end for o in outcomes})
            fleet.coordinators.clear()
            fleet.parts.remove(coordinator)
            fleet.judge(self, outcomes)


class GroupDrains(unittest.TestCase):
    def test_its_requests_move_to_another_group_or_finish_and_it_ends_with_zero(self):
        with Fleet(groups=[{}, {}]) as fleet:
            bodies = fleet.named([streamed(chat(PROMPTS[i % 4], **SLOW, n=4, seed=i % 8)) for i in range(32)])
            fleet.reference(bodies)
            before = fleet.readings()
            leaving = fleet.groups[0]
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= 16, "streams running", 30)
                leaving.send(signal.SIGTERM)
                began = time.monotonic()
                self.assertEqual(leaving.process.process.wait(60 * PATIENCE), 0)
                print(f"group drain: gone after {time.monotonic() - began:.2f} s")
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            fleet.groups.remove(leaving)
            fleet.parts.remove(leaving)
            fleet.judge(self, outcomes, before)

    def test_a_second_signal_ends_it_at_once_with_the_signals_code(self):
        with Fleet(groups=[{}]) as fleet:
            bodies = fleet.named([streamed(chat(**{**SLOW, "max_tokens": 320}, n=8, seed=i)) for i in range(4)])
            group = fleet.groups[0]
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: load.running(), "streams running", 30)
                group.send(signal.SIGTERM)
                wait_for(lambda: "draining" in group.text(), "the drain", 5)
                group.send(signal.SIGTERM)
                self.assertEqual(group.process.process.wait(5 * PATIENCE), 128 + signal.SIGTERM)
                group.start()
                load.finish()


if __name__ == "__main__":
    unittest.main(verbosity=2)
