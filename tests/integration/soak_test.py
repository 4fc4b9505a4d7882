#!/usr/bin/env python3
"""A mixed load with faults all the time: nothing grows, nothing drifts, no answer differs. QUICKSILVER_SOAK_SECONDS says
how long (30 unless told; a run that says something takes 1800)."""
import os
import random
import signal
import statistics
import threading
import time
import unittest

from clients import Client, Load
from fleet import Fleet, mixed_bodies, streamed
from history import COMPLETE, LEFT

SECONDS = float(os.environ.get("QUICKSILVER_SOAK_SECONDS", 30))
WARM_UP = 0.3  # Of the time: allocators and caches fill.


def slope(points):
    """Of the least-squares line through (x, y)."""
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def footprint(pid):
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


class Soak(unittest.TestCase):
    def test_memory_descriptors_threads_and_latency_stay_what_they_are(self):
        with Fleet(groups=[{}, {}]) as fleet:
            bodies = fleet.named(mixed_bodies(16, max_tokens=64))
            fleet.reference(bodies)
            dice = random.Random(52)
            began = time.monotonic()
            samples = []

            def over():
                return time.monotonic() - began > SECONDS

            async def leavers(load):
                while not over():
                    after = dice.randrange(8)
                    await load.one(fleet.api, streamed(dice.choice(bodies)), Client(leave=lambda o: len(o.deltas) >= after))

            def faults():
                while not over():
                    time.sleep(SECONDS / 6)
                    kill_or_pause(dice.choice(fleet.groups), dice)

            with Load() as load:
                load.closed_loop([fleet.api], bodies, clients=8, until=over)
                load.go(leavers(load))
                thread = threading.Thread(target=faults)
                thread.start()
                while not over():
                    samples.append((time.monotonic() - began, *footprint(fleet.coordinators[0].pid)))
                    time.sleep(0.5)
                thread.join()
                outcomes = load.finish()
            fleet.wait_ready()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end not in (COMPLETE, LEFT)], [])
            fleet.judge(self, outcomes)
            self.report(samples, [o for o in outcomes if o.end == COMPLETE], began)

    def report(self, samples, complete, began):
        warm = [s for s in samples if s[0] > WARM_UP * SECONDS]
        growth = slope([(t, rss) for t, rss, _, _ in warm]) * 600 / 2**20
        threads = {threads for _, _, _, threads in warm}
        descriptors = [fds for _, _, fds, _ in warm]
        half = (1 + WARM_UP) / 2 * SECONDS
        first = [o.ended_at - o.sent for o in complete if WARM_UP * SECONDS < o.sent - began <= half]
        last = [o.ended_at - o.sent for o in complete if o.sent - began > half]
        drift = statistics.median(last) / statistics.median(first) - 1
        print(f"soak of {SECONDS:.0f} s: {len(complete)} answers, RSS {warm[0][1] / 2**20:.1f} to {warm[-1][1] / 2**20:.1f} MiB "
              f"({growth:+.2f} MiB in 10 min), threads {sorted(threads)}, descriptors {min(descriptors)} to {max(descriptors)}, "
              f"median latency {drift:+.1%}")
        self.assertLessEqual(max(threads) - min(threads), 2)
        self.assertLess(max(descriptors), 64)
        # Over a moment a single fault moves the median.
        self.assertLess(growth, 1 if SECONDS >= 1800 else 120)
        if SECONDS >= 1800:
            self.assertLess(abs(drift), 0.05)


def kill_or_pause(group, dice):
    try:
        pid = group.rank_pids()[0]
        if dice.random() < 0.7:
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGSTOP)
        time.sleep(6)
        os.kill(pid, signal.SIGCONT)
    except (IndexError, ProcessLookupError):  # It is being started again.
        pass


if __name__ == "__main__":
    unittest.main(verbosity=2)
