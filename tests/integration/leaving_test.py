#!/usr/bin/env python3
"""Clients that read slowly, go away at any moment, or repeat themselves: nobody else notices, nothing is kept for them."""
import random
import statistics
import time
import unittest

from clients import Client, Load
from cluster import PATIENCE, wait_for
from fleet import FULL, PROMPTS, SLOW, Fleet, chat, mixed_bodies, streamed
from history import COMPLETE, CUT, LEFT
from hosts import Network

LEAVERS = 10_000 if FULL else 300
SLOW_READERS = 200 if FULL else 50


class Leaving(unittest.TestCase):
    def test_clients_that_leave_at_any_moment_free_everything_and_disturb_nobody(self):
        with Fleet(groups=[{}, {}]) as fleet:
            bodies = fleet.named(mixed_bodies(16))
            fleet.reference(bodies)
            dice = random.Random(25)

            def leaver():
                after = dice.choice([0, 0, 1, 3, 10, 10**9])  # Deltas; before the first one: after so long a wait.
                wait = dice.uniform(0, 0.3)
                return Client(leave=lambda o: len(o.deltas) >= after and time.monotonic() - o.sent >= wait, read_bytes=512)

            with Load() as load:
                async def one_after_the_other(count):
                    for _ in range(count):
                        await load.one(fleet.api, streamed(dice.choice(bodies)), leaver())

                for _ in range(24):
                    load.go(one_after_the_other(LEAVERS // 24))
                load.closed_loop([fleet.api], bodies * 2, clients=4)
                outcomes = load.finish(600)
            left = [o for o in outcomes if o.end == LEFT]
            print(f"leaving: {len(left)} of {len(outcomes)} clients left")
            self.assertGreater(len(left), LEAVERS // 4)
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end not in (COMPLETE, LEFT)], [])
            ended = time.monotonic()
            fleet.judge(self, outcomes)
            print(f"leaving: idle {time.monotonic() - ended:.2f} s after the last")
            gone = sum(p.sum("quicksilver_client_disconnects_total") for p in fleet.readings())
            # Some left when their whole answer was on its way.
            self.assertTrue(len(left) / 2 < gone <= len(left), (gone, len(left)))


class SlowReaders(unittest.TestCase):
    def times(self, fleet, bodies):
        with Load() as load:
            load.closed_loop([fleet.api], bodies, clients=2)
            times = [o.ended_at - o.sent for o in load.finish() if o.end == COMPLETE]
        self.assertEqual(len(times), len(bodies))
        return statistics.median(times)

    def test_clients_that_hardly_read_are_cut_off_and_cost_the_others_nothing(self):
        with Network(1) as hosts:
            hosts[0].bound_send_buffers(16384)  # What the kernel holds is out of the coordinator's sight.
            coordinator = {"host": hosts[0], "flags": ["--write-stall-seconds=3"]}
            with Fleet(groups=[{"host": hosts[0]}], coordinators=[coordinator]) as fleet:
                self.cut_off(fleet)

    def cut_off(self, fleet):
        normal = fleet.named([streamed(chat(PROMPTS[i % 4], max_tokens=64, seed=i % 8)) for i in range(40)])
        fleet.reference(normal)
        quiet = self.times(fleet, normal)
        long = fleet.named([streamed(chat(**{**SLOW, "max_tokens": 800}, n=8, seed=1))])[0]
        slow = Client(read_pause=0.5, read_bytes=1, receive_buffer=2048, leave=lambda o: time.monotonic() - o.sent > 60)
        rss = fleet_rss(fleet)
        with Load() as load:
            load.send(fleet.api, [long] * SLOW_READERS, slow)
            wait_for(lambda: len([o for o in load.outcomes if o.first_byte]) == SLOW_READERS, "their first bytes", 60)
            disturbed, grown = self.times(fleet, normal), 0
            while any(o.ended_at is None for o in load.outcomes):
                grown = max(grown, fleet_rss(fleet) - rss)
                time.sleep(0.1)
            outcomes = load.finish()
        print(f"slow readers: median {quiet * 1000:.1f} ms alone, {disturbed * 1000:.1f} ms beside {SLOW_READERS}; "
              f"{grown / SLOW_READERS / 1024:.0f} KiB each; the last cut after {max(o.ended_at - o.sent for o in outcomes):.1f} s")
        self.assertLess(grown / SLOW_READERS, (512 << 10) * PATIENCE)
        self.assertEqual({o.end for o in outcomes}, {CUT})
        self.assertEqual(sum(p.sum("quicksilver_slow_client_disconnects_total") for p in fleet.readings()), SLOW_READERS)
        fleet.judge(self, [], references=False)


class SameName(unittest.TestCase):
    def test_requests_that_bear_the_same_id_do_not_see_each_other(self):
        with Fleet(groups=[{}]) as fleet:
            bodies = fleet.named(mixed_bodies(16))
            fleet.reference(bodies)
            same = Client(headers={"X-Request-Id": "twin", "Idempotency-Key": "twin"})
            with Load() as load:
                load.send(fleet.api, bodies, same)
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            fleet.judge(self, outcomes)


def fleet_rss(fleet):
    with open(f"/proc/{fleet.coordinators[0].pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
