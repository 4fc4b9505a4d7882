"""Hosts of a small network as network namespaces on one bridge, whose cables and routes a test can cut."""
import os
import pathlib
import shutil
import subprocess
import unittest


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


def need_hosts():
    """Skips the test, and says why, where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise unittest.SkipTest("hosts need root and ip(8): no network namespaces here")
    probe = ip("netns", "add", f"qs{os.getpid()}probe", check=False)
    if probe.returncode != 0:
        raise unittest.SkipTest(f"no network namespaces here: {probe.stderr.strip()}")
    ip("netns", "del", f"qs{os.getpid()}probe")


class Host:
    def __init__(self, name, address, cable):
        self.name, self.address, self.cable = name, address, cable
        self.enter = ["ip", "netns", "exec", name]
        self.names_file = pathlib.Path("/etc/netns", name, "hosts")  # ip(8) shows it to programs as /etc/hosts.

    def plug(self, plugged):
        """The cable: everything is lost both ways while it is out, and nobody is told."""
        ip("link", "set", self.cable, "up" if plugged else "down")

    def names(self, hosts_of):
        """What names mean on this host, from now on; before its first program is started for the first time."""
        self.names_file.parent.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost"] + [f"{h.address} {name}" for name, hosts in hosts_of.items() for h in hosts]
        self.names_file.write_text("\n".join(lines) + "\n")
        # Where nobody listens: what is not in the file is refused at once.
        (self.names_file.parent / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def bound_send_buffers(self, size):
        """The kernel takes no more than so many bytes from a program ahead of its client."""
        subprocess.run([*self.enter, "sysctl", "-qw", f"net.ipv4.tcp_wmem=4096 16384 {size}"], check=True)

    def drop_to(self, other, dropped=True):
        """One way: what this host sends to `other` is lost; what comes from there arrives."""
        ip("-n", self.name, "route", "add" if dropped else "del", "blackhole", f"{other.address}/32")


class Network:
    """`count` hosts; this machine reaches all of them."""
    made = 0

    def __init__(self, count):
        need_hosts()
        # The kernel takes its time to remove what a network before this one had.
        Network.made += 1
        self.tag = f"qs{os.getpid() % 100000}{chr(96 + Network.made)}"
        self.prefix = f"10.231.{(os.getpid() + Network.made) % 250}"
        self.count = count
        self.hosts = []

    def __enter__(self):
        try:
            ip("link", "add", self.tag, "type", "bridge")
            ip("addr", "add", f"{self.prefix}.254/24", "dev", self.tag)
            ip("link", "set", self.tag, "up")
            for number in range(self.count):
                self.hosts.append(self.add(number))
        except BaseException:
            self.__exit__()
            raise
        return self.hosts

    def add(self, number):
        name, cable, address = f"{self.tag}-{number}", f"{self.tag}v{number}", f"{self.prefix}.{number + 1}"
        ip("netns", "add", name)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", cable, "master", self.tag, "up")
        for command in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
            ip("-n", name, *command)
        return Host(name, address, cable)

    def __exit__(self, *_):
        for host in self.hosts:
            shutil.rmtree(host.names_file.parent, ignore_errors=True)
        for number in range(self.count):
            ip("netns", "del", f"{self.tag}-{number}", check=False)
        ip("link", "del", self.tag, check=False)
