#!/usr/bin/env python3
"""A group that is lost takes no request with it: another one, or its own next incarnation, goes on with the same bytes."""
import os
import signal
import time
import unittest

from clients import Load
from cluster import PATIENCE, get, wait_for
from fleet import FULL, PROMPTS, SLOW, Fleet, Group, chat, mixed_bodies, streamed
from history import COMPLETE, ERROR

CLIENTS = 64 if FULL else 32
# By default a coordinator waits 30 s for a group that fits; tests of that wait need not.
SHORT_WAIT = ["--resume-wait-seconds=4"]


class Failover(unittest.TestCase):
    def run_through(self, fleet, fault, requests=CLIENTS, exact=True, prepare=lambda: None, bodies=None):
        """Requests of every kind (or `bodies`) at once, `fault` amid their streams: all complete, with the bytes of a
        quiet run. `prepare`: behind the quiet run."""
        bodies = fleet.named(bodies or mixed_bodies(requests))
        fleet.reference(bodies)
        prepare()
        before = fleet.readings()
        with Load() as load:
            load.send(fleet.api, bodies)
            wait_for(lambda: len(load.running()) >= requests // 4, "streams running", 30)
            self.began = time.monotonic()
            fault()
            outcomes = load.finish()
        self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
        fleet.judge(self, outcomes, before, exact)
        return outcomes

    def resumed(self, fleet):
        return sum(page.sum("quicksilver_requests_resumed_total") for page in fleet.readings())


class AnotherGroupIsReady(Failover):
    def test_killing_the_only_rank_of_a_group(self):
        for _ in range(50 if FULL else 1):
            self.kill_each_group_in_turn()

    def kill_each_group_in_turn(self):
        with Fleet(groups=[{}, {}]) as fleet:
            for group in fleet.groups:
                fleet.wait_ready()
                before = self.resumed(fleet)
                outcomes = self.run_through(fleet, lambda: group.signal_rank(0, signal.SIGKILL))
                stall = max(o.stall() for o in outcomes)
                print(f"longest stall {stall:.2f} s, resumed {self.resumed(fleet) - before:.0f}")
                self.assertLess(stall, 2 * PATIENCE)
                self.assertGreater(self.resumed(fleet), before)

    def test_policies_with_state_begin_their_open_block_anew(self):
        policies = ["wino", "credit", "klass", "hierarchical"]
        bodies = [streamed(chat(PROMPTS[i % len(PROMPTS)], max_tokens=256, temperature=0.8, seed=i,
                                quicksilver={"policy": policies[i % 4], "canvases": i % 8 < 4})) for i in range(CLIENTS)]
        with Fleet(groups=[{}, {}]) as fleet:
            before = self.resumed(fleet)
            self.run_through(fleet, lambda: fleet.groups[0].signal_rank(0, signal.SIGKILL), bodies=bodies)
            self.assertGreater(self.resumed(fleet), before)

    def test_killing_a_follower_of_two_ranks(self):
        with Fleet(groups=[{"ranks": 2}, {"ranks": 2}]) as fleet:
            self.run_through(fleet, lambda: fleet.groups[0].signal_rank(1, signal.SIGKILL))

    def test_killing_the_launcher_takes_its_ranks_along(self):
        with Fleet(groups=[{}, {}]) as fleet:
            def fault():
                ranks = fleet.groups[0].rank_pids()
                fleet.groups[0].kill()
                wait_for(lambda: not any(get_state(pid) for pid in ranks), "the ranks' end", 5)
                fleet.groups[0].start()

            self.run_through(fleet, fault)

    def test_a_paused_rank_is_lost_within_the_lease_and_nothing_it_says_later_counts(self):
        with Fleet(groups=[{}, {}]) as fleet:
            epoch = fleet.groups[0].epoch()

            def fault():
                pid = fleet.groups[0].signal_rank(0, signal.SIGSTOP)
                wait_for(lambda: fleet.coordinators[0].groups_up() == 1, "the loss", 10)
                self.detected = time.monotonic() - self.began
                time.sleep(15 if FULL else 2)  # Others go on meanwhile; what it says when it wakes up is old.
                os.kill(pid, signal.SIGCONT)

            self.run_through(fleet, fault)
            print(f"paused: detected after {self.detected:.2f} s")
            self.assertLess(self.detected, 5 + 1 * PATIENCE)
            fleet.wait_ready()
            self.assertGreaterEqual(fleet.groups[0].epoch(), epoch)
            self.run_through(fleet, lambda: None)

    def test_a_rank_that_leaves_out_a_step_costs_its_group_and_no_request(self):
        with Fleet(groups=[{"ranks": 2, "flags": ["--peer-timeout=2"]}, {"ranks": 2}]) as fleet:
            faulty, live = fleet.groups[0], []

            def prepare():
                faulty.process.stop()
                faulty.failpoints = "group.skip_step[1]=fail(1)+60^0"
                faulty.start()
                fleet.wait_ready()

            def fault():
                wait_for(lambda: live.append(get(fleet.groups[1].pages + "/health/live")[0])
                         or '"exit_code":4' in faulty.text(), "the group's end", 15)
                print(f"left out a step: all ranks gone {time.monotonic() - self.began:.2f} s after the load began")

            self.run_through(fleet, fault, prepare=prepare)
            self.assertEqual(set(live), {200})
            fleet.wait_ready()


class NoOtherGroup(Failover):
    def test_a_group_with_another_fingerprint_gets_none_of_them(self):
        other = Group("other", flags=["--threads=2"])  # The LM head's sums are added panel by panel, one a thread.
        self.addCleanup(lambda: other.process.stop())
        other.process.stop()
        with Fleet(groups=[{}], worker_addresses=lambda f: [f.groups[0].endpoint, other.endpoint]) as fleet:
            def fault():
                other.start()
                wait_for(lambda: fleet.coordinators[0].groups_up() == 2, "the other group", 20)
                self.assertTrue(fleet.coordinators[0].page().sum("quicksilver_num_requests_running"))
                fleet.groups[0].signal_rank(0, signal.SIGKILL)

            self.run_through(fleet, fault)
            self.assertEqual(other.page().sum("quicksilver_engine_step_total"), 0)

    def test_requests_wait_for_their_own_group_and_new_ones_are_told_to_come_back(self):
        with Fleet(groups=[{}], coordinators=[{}]) as fleet:
            turned_away = []

            def fault():
                fleet.groups[0].signal_rank(0, signal.SIGKILL)
                wait_for(lambda: turned_away.append(get(fleet.coordinators[0].base + "/health/ready")[0])
                         or turned_away[-1] != 200, "unreadiness", 5)

            self.run_through(fleet, fault)

    def test_requests_end_with_worker_lost_when_no_group_comes_back(self):
        with Fleet(groups=[{}], coordinators=[{"flags": SHORT_WAIT}]) as fleet:
            bodies = fleet.named([streamed(chat(**SLOW, n=4, seed=i)) for i in range(8)])
            fleet.reference(bodies)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) == 8, "streams running", 30)
                fleet.groups[0].kill()
                killed = time.monotonic()
                wait_for(lambda: fleet.coordinators[0].groups_up() == 0, "the loss", 10)
                refused = fleet_ask(fleet, bodies[0])
                self.assertEqual((refused.status, refused.code), (503, "no_ready_worker"))
                self.assertIn("retry-after", refused.headers)
                outcomes = load.finish(30)
            waited = max(o.ended_at for o in outcomes) - killed
            self.assertEqual({o.code for o in outcomes}, {"worker_lost"})
            self.assertTrue(3 < waited < 10 * PATIENCE, waited)
            fleet.parts.remove(fleet.groups.pop())
            fleet.judge(self, outcomes)

    def test_the_group_that_comes_back_gets_the_requests_that_waited(self):
        with Fleet(groups=[{}]) as fleet:
            def fault():
                fleet.groups[0].kill()
                wait_for(lambda: fleet.coordinators[0].groups_up() == 0, "the loss", 10)
                fleet.groups[0].start()

            self.run_through(fleet, fault)


class Poison(Failover):
    def test_a_request_that_kills_every_group_fails_alone_and_soon(self):
        poisoned = {"failpoints": "engine.poison[666]=kill"}
        with Fleet(groups=[poisoned, poisoned]) as fleet:
            bodies = fleet.named([streamed(chat(PROMPTS[i % 4], **SLOW, seed=i)) for i in range(8)])
            fleet.reference(bodies)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= 4, "streams running", 30)
                load.send(fleet.api, fleet.named([chat(**SLOW, seed=666)]))
                outcomes = load.finish()
            poison = outcomes.pop()
            self.assertEqual((poison.end, poison.status, poison.code), (ERROR, 500, "worker_lost"))
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            fleet.wait_ready()
            restarts = sum(g.page().sum("quicksilver_worker_restarts_total") for g in fleet.groups)
            print(f"poison: {restarts:.0f} restarts, failed after {poison.ended_at - poison.sent:.2f} s")
            self.assertLessEqual(restarts, 3)
            fleet.judge(self, outcomes)


class RollingUpdate(Failover):
    def test_replacing_every_group_and_coordinator_in_turn_fails_no_request(self):
        with Fleet(groups=[{}, {}], coordinators=[{"flags": ["--drain-seconds=30"]}, {"flags": ["--drain-seconds=30"]}]) as fleet:
            bodies = fleet.named(mixed_bodies(16, max_tokens=96))
            fleet.reference(bodies)
            over = []
            with Load() as load:
                load.closed_loop([fleet.coordinators[0].api], bodies, clients=4, until=lambda: over)
                for part in [*fleet.groups, fleet.coordinators[1]]:
                    part.send(signal.SIGTERM)
                    self.assertEqual(part.process.process.wait(30 * PATIENCE), 0, part.text()[-2000:])
                    part.start()
                    fleet.wait_ready()
                over.append(True)
                outcomes = load.finish()
            print(f"rolling update: {len(outcomes)} requests")
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            fleet.judge(self, outcomes)


def get_state(pid):
    """The state letter of a process that is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0].replace("Z", "")
    except FileNotFoundError:
        return ""


def fleet_ask(fleet, body):
    return fleet.ask({k: v for k, v in body.items() if k not in ("stream", "stream_options")})


if __name__ == "__main__":
    unittest.main(verbosity=2)
