"""A federation of three owners on Flower, on this machine alone, compared with the same run in one process.

    make flower
    .venv-flower/bin/python scripts/flower_loopback.py secure-aggregation

It makes keys, starts a SuperLink and three SuperNodes, and runs `examples/flower` on them; all of it in a folder that is
removed, and, where the system allows that, in a network namespace that reaches nothing else. It ends with 0 if the weights
and the metered bytes are those of one process.

With ``--kill 4`` it kills the ServerApp when its checkpoint was written four times, and goes on from there in a second
``flwr run``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "examples" / "flower"
BIN = Path(sys.executable).parent
OWNERS = 3
SEED = 7
INSIDE = "TACIT_LOOPBACK_INSIDE"
APART = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]

sys.path.insert(0, str(APP))


def offline(home: Path) -> dict[str, str]:
    """The environment of Flower's programs: nothing is sent, looked up or installed."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Programs:
    """Flower's programs, each with a log; all of them end with this."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = offline(folder / "flwr")
        self.running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own."""
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(  # noqa: S603 - Flower's own programs
            [str(BIN / command[0]), *command[1:]], stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=self.env, cwd=self.folder, start_new_session=True,
        )  # fmt: skip
        self.running.append((process, log))
        return process

    def end(self) -> None:
        """End all, with what they started."""
        for process, _ in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process, log in self.running:
            process.wait()
            log.close()

    def logs(self) -> str:
        """The end of every log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-4000:]}" for p in logs)


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the SuperLink does not listen")


def quoted(config: Mapping[str, object]) -> str:
    """A configuration as Flower's command line takes it."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())


def on_flower(
    config: Mapping[str, object], folder: Path, *, kill: int, seconds: float
) -> dict[str, object]:
    """The run on SuperLink and SuperNodes; what run.json says."""
    programs, out = Programs(folder), folder / "out"
    link, *ports = free_ports(1 + OWNERS)
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n\n[superlink.loop]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    keys = folder / "keys"
    made = [
        BIN / "tacit", "keys", "new", "--federation", "demo", "--owners", str(OWNERS), "--out", keys,
    ]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)  # noqa: S603
    try:
        begun = time.monotonic()
        server = programs.start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        wait_for(link, server)
        for index, port in enumerate(ports):
            node: dict[str, object] = {
                "role": f"owner {index}",
                "keys": str(keys / f"owner-{index}"),
            }
            if kill:
                node["state"] = str(folder / f"state-{index}")
            programs.start(
                f"supernode-{index}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}",
                "--host", "127.0.0.1", "--port", str(port), "--node-config", quoted(node),
            )  # fmt: skip
        there: dict[str, object] = {"keys": str(keys / "server-0"), "out": str(out), "seed": SEED}
        checkpoint = folder / "checkpoint"
        if kill:
            there["checkpoint"] = str(checkpoint)
        run = [
            "flwr",
            "run",
            str(APP),
            "loop",
            "--stream",
            "--run-config",
            quoted({**config, **there}),
        ]
        first = programs.start("run", *run)
        end = time.monotonic() + seconds
        if kill:
            written: set[int] = set()
            while len(written) < kill and time.monotonic() < end and first.poll() is None:
                if checkpoint.exists():
                    written.add(checkpoint.stat().st_mtime_ns)
                time.sleep(0.05)
            kill_serverapp(server.pid)
            print("the ServerApp was killed; a second run goes on from its checkpoint")
            while first.poll() is None and time.monotonic() < end:
                time.sleep(0.5)
            first = programs.start("run-again", *run)
        while not (out / "run.json").exists() and time.monotonic() < end:
            if first.poll() is not None and time.monotonic() > begun + 5:
                time.sleep(2)
                break
            time.sleep(0.5)
        if not (out / "run.json").exists():
            raise SystemExit(f"no result within {seconds:g} s\n{programs.logs()}")
        found: dict[str, object] = json.loads((out / "run.json").read_text())
        found["all"] = time.monotonic() - begun
        return found
    finally:
        programs.end()


def kill_serverapp(ancestor: int) -> None:
    """Kill the ServerApp among the processes that the SuperLink started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    for pid in parents:
        line, at = [pid], pid
        while at in parents and at != ancestor:
            at = parents[at]
            line.append(at)
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if at == ancestor and b"flwr-serverapp" in command:
            os.kill(pid, signal.SIGKILL)


def in_one_process(config: Mapping[str, object]) -> dict[str, object]:
    """The same run in this process: what run.json would say."""
    # what only this process needs, and not the one that goes into a namespace
    from tacit_flower.common import Plan  # noqa: PLC0415

    from tacit.audit.figures import one_thread  # noqa: PLC0415
    from tacit.nn.local_work import parameters_of  # noqa: PLC0415
    from tacit.parties.links.local import LocalHub  # noqa: PLC0415

    plan = Plan.of({**config, "seed": SEED, "run": "1", "owners": OWNERS})
    task = plan.task()
    begun = time.monotonic()
    with one_thread():
        hub = LocalHub(plan.protection.members_of(task, plan.seat()))
        run = plan.protection.run(hub, task.only(), plan.seat())
    weights = b"".join(a.tobytes() for a in parameters_of(run.output.value))
    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "cost": {role: cost.described() for role, cost in run.cost.by().items()},
        "rounds": run.cost.rounds,
        "all": time.monotonic() - begun,
    }


def metered(found: Mapping[str, object]) -> dict[str, object]:
    """What must be equal: messages and bytes of every role, and rounds."""
    cost = found["cost"]
    if not isinstance(cost, dict):
        raise SystemExit("a result without cost")
    counts = ("messages", "bytes_sent", "bytes_received")
    by_role = {role: {name: int(one[name]) for name in counts} for role, one in cost.items()}
    return {"rounds": found["rounds"], **dict(sorted(by_role.items()))}


def main(arguments: Sequence[str]) -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "scheme", choices=["federated-averaging", "selective-sgd", "secure-aggregation"]
    )
    parser.add_argument("--rounds", type=int, default=2)
    told = "kill the ServerApp when its checkpoint was written so often, and go on from there"
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES", help=told)
    parser.add_argument("--seconds", type=float, default=600.0, help="give up after so many")
    chosen = parser.parse_args(arguments)
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        up = [*APART, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if shutil.which(up[0]) and not subprocess.run([*up, "true"], check=False).returncode:  # noqa: S603
            again = [*up, sys.executable, __file__, *arguments]
            return subprocess.run(again, check=False).returncode  # noqa: S603
        print("no network namespace here: it runs on the loopback interface")
    config: dict[str, object] = {"scheme": chosen.scheme, "rounds": chosen.rounds}
    here = in_one_process(config)
    with tempfile.TemporaryDirectory(prefix="tacit-flower-") as folder:
        there = on_flower(config, Path(folder), kill=chosen.kill, seconds=chosen.seconds)
    same = here["weights"] == there["weights"]
    print(f"weights in one process  {here['weights']}  ({here['all']:.1f} s)")
    print(
        f"weights on Flower       {there['weights']}  ({there['all']:.1f} s in all, {there['seconds']})"
    )
    print(f"metered in one process  {json.dumps(metered(here))}")
    print(f"metered on Flower       {json.dumps(metered(there))}")
    equal = same and (chosen.kill or metered(here) == metered(there))
    print("equal" if equal else "NOT equal")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
