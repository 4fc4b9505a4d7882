#!/usr/bin/env python3
"""Hosts that cannot hear each other, coordinators that die, several of them over the same groups."""
import signal
import time
import unittest

from clients import Load
from cluster import PATIENCE, free_port, wait_for
from fault_proxy import FaultProxy
from fleet import FULL, PROMPTS, SLOW, Fleet, Group, chat, mixed_bodies, streamed
from history import COMPLETE, CUT
from hosts import Network

CLIENTS = 64 if FULL else 24


class Partitions(unittest.TestCase):
    """Two groups and a coordinator, each on a host of its own; the clients are outside."""

    def through(self, cut, heal, detect=True):
        """`cut` amid streams and before further requests: all of them complete."""
        with Network(3) as hosts:
            with Fleet(groups=[{"host": hosts[0]}, {"host": hosts[1]}], coordinators=[{"host": hosts[2]}]) as fleet:
                bodies = fleet.named(mixed_bodies(CLIENTS))
                fleet.reference(bodies)
                before = fleet.readings()
                with Load() as load:
                    load.send(fleet.api, bodies)
                    wait_for(lambda: len(load.running()) >= CLIENTS // 4, "streams running", 30)
                    began = time.monotonic()
                    cut(hosts)
                    if detect:
                        wait_for(lambda: fleet.coordinators[0].groups_up() == 1, "the loss", 10)
                        print(f"partition: detected after {time.monotonic() - began:.2f} s")
                        self.assertLess(time.monotonic() - began, 5 + 1.5 * PATIENCE)
                    load.closed_loop([fleet.api], bodies, clients=8)
                    outcomes = load.finish()
                self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
                healed = time.monotonic()
                heal(hosts)
                fleet.wait_ready()
                print(f"partition: whole again {time.monotonic() - healed:.2f} s after healing")
                fleet.judge(self, outcomes, before)
                again = Load()
                with again:
                    again.send(fleet.api, bodies)
                    fleet.judge(self, again.finish())

    def test_a_cable_that_is_pulled(self):
        self.through(lambda hosts: hosts[0].plug(False), lambda hosts: hosts[0].plug(True))

    def test_a_group_that_is_not_heard(self):
        self.through(lambda hosts: hosts[0].drop_to(hosts[2]), lambda hosts: hosts[0].drop_to(hosts[2], False))

    def test_a_group_that_hears_nothing(self):
        # Its heartbeats arrive until its window is full, since nobody confirms them: lost a little later.
        self.through(lambda hosts: hosts[2].drop_to(hosts[0]), lambda hosts: hosts[2].drop_to(hosts[0], False), detect=False)


class BadConnections(unittest.TestCase):
    """The stream between a coordinator and one of its groups, through a proxy that breaks it."""

    def through(self, fault):
        proxies = []
        self.addCleanup(lambda: [p.close() for p in proxies])

        def addresses(fleet):
            proxies.append(FaultProxy(("127.0.0.1", fleet.groups[0].port)))
            return [proxies[0].endpoint, fleet.groups[1].endpoint]

        with Fleet(groups=[{}, {}], worker_addresses=addresses) as fleet:
            bodies = fleet.named(mixed_bodies(CLIENTS))
            fleet.reference(bodies)
            with Load() as load:
                load.send(fleet.api, bodies)
                wait_for(lambda: len(load.running()) >= CLIENTS // 4, "streams running", 30)
                fault(proxies[0])
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            proxies[0].frozen, proxies[0].drip, proxies[0].delay = set(), 0, 0.0
            proxies[0].reset()
            fleet.wait_ready()
            fleet.judge(self, outcomes)

    def test_a_stream_that_is_reset(self):
        self.through(lambda proxy: proxy.reset())

    def test_a_half_open_connection_that_says_nothing(self):
        def freeze(proxy):
            proxy.frozen = {"up", "down"}
        self.through(freeze)

    def test_results_that_come_late_and_in_drops(self):
        def slow(proxy):
            proxy.delay, proxy.drip = 0.2, 400
        self.through(slow)


class SeveralCoordinators(unittest.TestCase):
    def test_killing_one_cuts_its_clients_frees_its_sequences_and_leaves_the_other_alone(self):
        with Fleet(groups=[{}, {}], coordinators=[{}, {}]) as fleet:
            bodies = fleet.named([streamed(chat(PROMPTS[i % 4], **SLOW, n=4, seed=i)) for i in range(16)])
            fleet.reference(bodies)
            killed, kept = fleet.coordinators
            with Load() as load:
                load.closed_loop([killed.api, kept.api], bodies, clients=16)
                wait_for(lambda: len(load.running()) >= 8, "streams running", 30)
                began = time.monotonic()
                killed.kill()
                outcomes = load.finish()
            ends = {name: {o.end for o in outcomes if o.server.endswith(f":{c.http}") and o.ended_at > began}
                    for name, c in (("killed", killed), ("kept", kept))}
            self.assertEqual(ends, {"killed": {CUT}, "kept": {COMPLETE}})
            wait_for(lambda: all(g.page().sum("quicksilver_num_requests_running") == 0 for g in fleet.groups), "slots free", 6)
            print(f"coordinator killed: slots free after {time.monotonic() - began:.2f} s")
            restarted = time.monotonic()
            epochs = [g.epoch() for g in fleet.groups]
            killed.start()
            wait_for(killed.ready, "ready again", 5)
            print(f"coordinator killed: ready {time.monotonic() - restarted:.2f} s after its start")
            fleet.wait_ready()
            self.assertEqual([g.epoch() for g in fleet.groups], epochs)
            fleet.judge(self, outcomes)

    def test_two_share_small_pools_without_admitting_too_much_and_lose_nothing_when_one_drains(self):
        small = {"flags": ["--kv-pages=96", "--sequences-max=8"]}
        with Fleet(groups=[small, small], coordinators=[{}, {}]) as fleet:
            bodies = fleet.named(mixed_bodies(32, max_tokens=96))
            fleet.reference(bodies)
            before = fleet.readings()
            with Load() as load:
                load.closed_loop([c.api for c in fleet.coordinators], bodies, clients=32)
                seen = []
                wait_for(lambda: seen.append(max(g.page().sum("quicksilver_kv_cache_usage_ratio") for g in fleet.groups))
                         or all(o.ended_at for o in load.outcomes) and len(load.outcomes) == len(bodies), "the end", 60)
                outcomes = load.finish()
            self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
            self.assertLessEqual(max(seen), 1)
            fleet.judge(self, outcomes, before)
            fleet.coordinators[0].send(signal.SIGTERM)
            self.assertEqual(fleet.coordinators[0].process.process.wait(20 * PATIENCE), 0)


class Discovery(unittest.TestCase):
    def test_a_group_that_is_not_there_yet_is_found_when_it_comes(self):
        late = Group("late")
        self.addCleanup(lambda: late.process.stop())
        late.process.stop()
        with Fleet(groups=[{}], worker_addresses=lambda f: [f.groups[0].endpoint, late.endpoint]) as fleet:
            self.assertEqual(fleet.ask(chat(max_tokens=16)).end, COMPLETE)
            late.start()
            wait_for(lambda: fleet.coordinators[0].groups_up() == 2, "the late group", 20)

    def test_a_name_that_does_not_resolve_leaves_the_listed_groups_serving(self):
        with Fleet(groups=[{}], worker_addresses=lambda f: [f.groups[0].endpoint, "dns:///no-such-host.invalid:7070"]) as fleet:
            for _ in range(3):
                self.assertEqual(fleet.ask(chat(max_tokens=16)).end, COMPLETE)
            self.assertIn("no-such-host.invalid", fleet.coordinators[0].text())

    def test_groups_follow_their_name_from_host_to_host_while_requests_flow(self):
        port = free_port()
        with Network(3) as hosts:
            hosts[2].names({"groups": [hosts[0]]})
            coordinator = {"host": hosts[2], "flags": ["--discovery-seconds=0.5"]}
            with Fleet(groups=[{"host": hosts[0], "port": port}], coordinators=[coordinator],
                       worker_addresses=lambda f: [f"dns:///groups:{port}"]) as fleet:
                bodies = fleet.named(mixed_bodies(16, max_tokens=64))
                fleet.reference(bodies)
                over = []
                with Load() as load:
                    load.closed_loop([fleet.api], bodies, clients=4, until=lambda: over)
                    fleet.groups.append(fleet.add(Group("group1", host=hosts[1], port=port)))
                    hosts[2].names({"groups": hosts[:2]})
                    fleet.wait_ready()
                    hosts[2].names({})  # A name server that is down: those that were found stay.
                    time.sleep(1.5)
                    self.assertEqual(fleet.coordinators[0].groups_up(), 2)
                    hosts[2].names({"groups": [hosts[1]]})
                    time.sleep(2.5)
                    leaving = fleet.groups[0]  # It serves until it goes, and is not dialled again.
                    leaving.send(signal.SIGTERM)
                    self.assertEqual(leaving.process.process.wait(30 * PATIENCE), 0)
                    leaving.start()
                    wait_for(leaving.ready, "its next incarnation", 20)
                    over.append(True)
                    outcomes = load.finish()
                self.assertEqual(fleet.coordinators[0].groups_up(), 1)
                self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
                fleet.judge(self, outcomes)


if __name__ == "__main__":
    unittest.main(verbosity=2)
