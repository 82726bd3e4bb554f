"""Our own Ray is closed by default: what can be said of that without starting one."""

import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cluster.ray_node import (
    FOLDER,
    LONGEST_SOCKET,
    MARK,
    RAY_FOLDER,
    SPILLED,
    STORE,
    RayNode,
    is_loopback,
    open_listeners,
    processes_marked,
    spilled_bytes,
)

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def node() -> Iterator[RayNode]:
    node = RayNode.prepare()
    yield node
    node.remove()


def test_the_folder_and_its_token_are_their_owners_alone(node: RayNode) -> None:
    token = node.folder / "token"

    assert stat.S_IMODE(node.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(bytes.fromhex(token.read_text())) == 32


def test_no_two_runs_share_a_token_a_folder_or_a_mark(node: RayNode) -> None:
    other = RayNode.prepare()
    tokens = {(each.folder / "token").read_text() for each in (node, other)}
    other.remove()

    assert len(tokens) == len({node.folder, other.folder}) == len({node.mark, other.mark}) == 2
    assert not other.folder.exists()


def test_the_folder_is_short_enough_for_rays_sockets(node: RayNode) -> None:
    assert len(f"{node.folder}/{LONGEST_SOCKET}") <= 107


def test_the_supervisor_is_told_how_large_its_store_shall_be(node: RayNode) -> None:
    larger = RayNode(node.folder, node.mark, 300 << 20)

    assert (node.environment({})[STORE], larger.environment({})[STORE]) == (str(256 << 20), str(300 << 20))


def test_what_ray_moved_to_the_disk_is_added_up(node: RayNode) -> None:
    before = spilled_bytes(node.folder / RAY_FOLDER)
    place = node.folder / SPILLED / "ray_spilled_objects_1"
    place.mkdir(parents=True)
    for name, size in (("a", 1_000), ("b", 500)):
        (place / name).write_bytes(bytes(size))

    assert (before, spilled_bytes(node.folder / RAY_FOLDER)) == (0, 1_500)


def test_nothing_that_was_set_for_another_ray_is_inherited(node: RayNode) -> None:
    base = {"PATH": "/bin", "RAY_ADDRESS": "head:6379", "RAY_AUTH_TOKEN": "x", "RAY_NAMESPACE": "y"}

    environment = node.environment(base)

    assert environment["PATH"] == "/bin"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_NAMESPACE"} & environment.keys()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(node.folder / "token")
    assert (environment[MARK], environment[FOLDER]) == (node.mark, str(node.folder / RAY_FOLDER))
    assert base.keys() == {"PATH", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_NAMESPACE"}


def test_the_token_itself_is_not_in_the_environment(node: RayNode) -> None:
    token = (node.folder / "token").read_text()

    assert token not in "".join(node.environment(os.environ).values())


def test_every_process_with_the_mark_is_ended_and_no_other(node: RayNode) -> None:
    bystander = RayNode(node.folder, secrets.token_hex(8))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SLEEPER], env=each.environment(os.environ), stdout=subprocess.PIPE, text=True
        )
        for each in (node, node, bystander)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"

    assert node.kill() == 2

    assert [process.poll() is None for process in started] == [False, False, True]
    assert [each.pid for each in processes_marked(bystander.mark)] == [started[2].pid]
    assert bystander.kill() == 1
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    ("address", "closed"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:0.0.0.0", False),
        ("192.0.2.2", False),
        ("::ffff:192.0.2.2", False),
    ],
)
def test_only_loopback_is_loopback(address: str, closed: bool) -> None:
    assert is_loopback(address) is closed


def test_a_socket_that_listens_to_everyone_is_named() -> None:
    with socket.socket() as inside, socket.socket() as outside:
        inside.bind(("127.0.0.1", 0))
        outside.bind(("0.0.0.0", 0))
        inside.listen()
        outside.listen()

        found = open_listeners(iter([psutil.Process()]))

        port = outside.getsockname()[1]
    assert [line.rpartition(" ")[2] for line in found] == [f"0.0.0.0:{port}"]
