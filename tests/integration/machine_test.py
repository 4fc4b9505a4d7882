#!/usr/bin/env python3
"""Clocks that jump, logs that nobody reads, too few descriptors; and what health says in every state."""
import email.utils
import fcntl
import os
import signal
import socket
import struct
import tempfile
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients import Load
from cluster import BUILD, PATIENCE, get, wait_for
from fleet import SLOW, Fleet, chat, mixed_bodies
from history import COMPLETE

CLOCK_SHIM = BUILD / "tests/integration/libclock_shim.so"
HOUR = 3600.0


class Clocks(unittest.TestCase):
    def clock(self):
        """A clock file and the environment that makes programs obey it."""
        file = tempfile.NamedTemporaryFile()
        self.addCleanup(file.close)

        def jump(seconds):
            file.seek(0)
            file.write(struct.pack("d", seconds))
            file.flush()

        jump(0)
        return jump, {"LD_PRELOAD": str(CLOCK_SHIM), "CLOCK_SHIM_FILE": file.name, "ASAN_OPTIONS": "verify_asan_link_order=0"}

    def test_jumps_of_an_hour_disturb_no_request_lease_or_measure(self):
        jump, environment = self.clock()
        theirs, other = self.clock()  # The second group lives ten minutes ahead of everybody.
        theirs(600)
        with Fleet(groups=[{"environment": environment, "ranks": 2}, {"environment": other}], coordinators=[{"environment": environment}]) as fleet:
            bodies = fleet.named(mixed_bodies(16))
            fleet.reference(bodies)
            before = fleet.readings()
            epochs = [g.epoch() for g in fleet.groups]
            for offset in (HOUR, -HOUR, 0):
                with Load() as load:
                    load.send(fleet.api, bodies)
                    wait_for(lambda: len(load.running()) >= 4, "streams running", 30)
                    jump(offset)
                    outcomes = load.finish()
                self.assertEqual([(o.code, o.note) for o in outcomes if o.end != COMPLETE], [])
                fleet.judge(self, outcomes)
                shown = email.utils.parsedate_to_datetime(fleet.ask(bodies[0]).headers["date"]).timestamp()
                self.assertAlmostEqual(shown - time.time(), offset, delta=60)
            self.assertEqual([g.epoch() for g in fleet.groups], epochs, "a group was lost")
            for page in [*fleet.readings(), *(g.page() for g in fleet.groups)]:
                negative = {name: value for (name, _), value in page.series.items() if value < 0}
                self.assertEqual(negative, {})
            grown = sum(p.sum("quicksilver_e2e_request_latency_seconds_sum") for p in fleet.readings()) - sum(
                p.sum("quicksilver_e2e_request_latency_seconds_sum") for p in before)
            self.assertLess(grown, HOUR / 2)

    def test_a_group_that_comes_back_with_a_clock_behind_its_last_one_joins_again(self):
        jump, environment = self.clock()
        with Fleet(groups=[{"environment": environment}]) as fleet:
            jump(-HOUR)
            fleet.groups[0].kill()
            wait_for(lambda: fleet.coordinators[0].groups_up() == 0, "the loss", 10)
            fleet.groups[0].start()
            fleet.wait_ready(20)
            self.assertEqual(fleet.ask(chat(max_tokens=16)).end, COMPLETE)


class Logs(unittest.TestCase):
    def serves(self, fleet):
        bodies = fleet.named(mixed_bodies(16, max_tokens=64))
        fleet.reference(bodies)
        with Load() as load:
            load.send(fleet.api, bodies)
            fleet.judge(self, load.finish())

    def test_closed_standard_streams_do_not_stop_the_service(self):
        closed = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"]
        with Fleet(groups=[{"wrapper": closed}], coordinators=[{"wrapper": closed, "flags": ["--log-level=debug"]}]) as fleet:
            self.serves(fleet)

    def test_a_pipe_that_nobody_reads_does_not_stop_the_service(self):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_inheritable(writer, True)
        full = ["sh", "-c", f'exec "$@" 2>/proc/{os.getpid()}/fd/{writer}', "sh"]
        with Fleet(groups=[{}], coordinators=[{"wrapper": full, "flags": ["--log-level=debug"]}]) as fleet:
            for _ in range(4):
                self.serves(fleet)
            # Each of these is logged: more than a pipe of 4 KiB holds.
            for _ in range(100):
                fleet.ask(chat(quicksilver={"block_length": 7}))
            self.assertGreater(fleet.readings()[0].sum("quicksilver_log_lines_dropped_total"), 0)
            self.serves(fleet)
        os.close(reader)
        os.close(writer)


class Descriptors(unittest.TestCase):
    def test_with_few_descriptors_health_still_answers_and_what_was_accepted_is_served(self):
        few = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
        with Fleet(groups=[{}], coordinators=[{"wrapper": few, "flags": ["--connections-per-address-max=1000000"]}]) as fleet:
            bodies = fleet.named(mixed_bodies(16, max_tokens=64))
            fleet.reference(bodies)
            coordinator = fleet.coordinators[0]
            idle = []
            with Load() as load:
                load.send(fleet.api, bodies)
                for _ in range(600):
                    try:
                        idle.append(socket.create_connection(("127.0.0.1", coordinator.http), timeout=2))
                    except OSError:
                        break
                outcomes = load.finish()
                spent = cpu_seconds(coordinator.pid)
                asked = time.monotonic()
                status, _ = get(coordinator.pages + "/health/live", timeout=3)
                answered = time.monotonic() - asked
                time.sleep(1)
                spinning = cpu_seconds(coordinator.pid) - spent
            print(f"descriptors: {len(idle)} idle connections at 256, health {status} after {answered:.3f} s, {spinning:.2f} CPU s in a second")
            for connection in idle:
                connection.close()
            self.assertEqual(status, 200)
            self.assertLess(answered, 1 * PATIENCE)
            self.assertLess(spinning, 0.5)
            self.assertLessEqual({o.end for o in outcomes}, {COMPLETE, "cut"})
            wait_for(lambda: fleet.ask(bodies[0]).end == COMPLETE, "service", 10)
            fleet.wait_idle()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Health(unittest.TestCase):
    """The truth table of docs/reliability.md. A row: liveness, readiness (which /health repeats), the same over gRPC."""

    def probe(self, part, grpc_port):
        pages = part.pages if part.name.startswith("group") else part.base
        times = []

        def http(path):
            began = time.monotonic()
            status = get(pages + path, timeout=3)[0]
            times.append(time.monotonic() - began)
            return status

        live, ready, whole = http("/health/live"), http("/health/ready"), http("/health")

        def check(service):
            try:
                with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                    began = time.monotonic()
                    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=3)
                    times.append(time.monotonic() - began)
                    return reply.status == health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError:
                return None

        row = live, ready, check("liveness"), check("readiness")
        self.assertLess(max(times), 1 * PATIENCE)
        return row if whole == ready else ("changing", whole, *row)

    def expect(self, part, grpc_port, row, state):
        seen = []
        try:
            wait_for(lambda: seen.append(self.probe(part, grpc_port)) or seen[-1] == row, state, 10)
        except AssertionError:
            self.fail(f"{part.name} {state}: expected {row}, last saw {seen[-1]}")

    def test_a_coordinator_without_and_with_a_group_draining_and_gone(self):
        with Fleet(groups=[{}], coordinators=[{"flags": ["--lame-duck-seconds=3"]}]) as fleet:
            coordinator, group = fleet.coordinators[0], fleet.groups[0]
            self.expect(coordinator, coordinator.grpc, (200, 200, True, True), "ready")
            group.kill()
            self.expect(coordinator, coordinator.grpc, (200, 503, True, False), "without a worker")
            group.start()
            self.expect(coordinator, coordinator.grpc, (200, 200, True, True), "ready again")
            coordinator.send(signal.SIGTERM)
            self.expect(coordinator, coordinator.grpc, (200, 503, True, False), "draining")
            self.assertEqual(coordinator.process.process.wait(20 * PATIENCE), 0)
            self.expect(coordinator, coordinator.grpc, (0, 0, None, None), "stopped")

    def test_a_group_starting_ready_draining_and_gone(self):
        with Fleet(groups=[{"failpoints": "worker.init=delay(1500ms)"}], ready=False) as fleet:
            group = fleet.groups[0]
            self.expect(group, group.port, (0, 0, None, None), "starting")
            self.expect(group, group.port, (200, 200, True, True), "ready")
            fleet.wait_ready()
            with Load() as load:
                load.send(fleet.api, fleet.named([chat(**{**SLOW, "max_tokens": 900}, n=8, seed=i) for i in range(4)]))
                wait_for(lambda: group.page().sum("quicksilver_num_requests_running") > 0, "work", 10)
                group.send(signal.SIGTERM)
                self.expect(group, group.port, (200, 503, True, False), "draining")
                load.finish()
            self.assertEqual(group.process.process.wait(20 * PATIENCE), 0)
            self.expect(group, group.port, (0, 0, None, None), "stopped")


if __name__ == "__main__":
    unittest.main(verbosity=2)
