"""Real Flower processes on loopback: a SuperLink, SuperNodes, `flwr run`. Used by the engine tests and by bench_grid.

Everything has its own ports and its own FLWR_HOME, and is killed in the end. Below: the same results without them.
"""

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUICK = (
    Path(__file__).parent / "quick"
)  # what stands in for two of Flower's commands; each says why
ATTEMPTS = 3  # a starved machine can lose a SuperNode for a while; a run that went on without it has another result
LOOPBACK = "127.0.0.1"


class Flower:
    """A SuperLink and what talks to it, in one folder. Use in a `with` block.

    libraries: modules that its processes have in memory when they start, so that they start quickly.
    """

    def __init__(self, folder, simulation=False, libraries=()):
        self.folder, self.simulation = Path(folder), simulation
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.processes = free_port(), {}
        self.environment = (
            os.environ
            | {
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "FLWR_HOME": str(self.folder / "home"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # seconds from a message to its process; else 1
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",  # else 15: on a busy machine they starve until Ray gives them up
                "OMP_NUM_THREADS": "1",
                "NO_PROXY": "*",
                "COLUMNS": "200",
            }
        )
        if libraries:
            self.environment["PATH"] = f"{QUICK}{os.pathsep}{self.environment['PATH']}"
            self.environment["FEDGEN_LIBRARIES"] = " ".join(libraries)

    def __enter__(self):
        try:
            self._start_superlink()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error):
        self.stop()

    def _start_superlink(self):
        arguments = [
            "--host",
            LOOPBACK,
            "--port",
            str(self.port),
            "--disable-runtime-dependency-installation",
        ]
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        if self.simulation:
            arguments += ["--simulation", "--insecure"]
            trust = "insecure = true"
        else:
            make_certificates(self.folder)
            names = {"certfile": "server.pem", "keyfile": "server.key", "ca-certfile": "ca.pem"}
            for option, name in names.items():
                arguments += [f"--ssl-{option}", str(self.folder / name)]
            arguments.append("--enable-supernode-auth")
            trust = f'root-certificates = "{self.folder / "ca.pem"}"'
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{LOOPBACK}:{self.port}"\n{trust}\n',
            encoding="utf-8",
        )
        self.start("superlink", "flower-superlink", *arguments)
        self._wait_until_healthy()

    def _wait_until_healthy(self, seconds=60):
        scheme, verify = (
            ("http", True) if self.simulation else ("https", str(self.folder / "ca.pem"))
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.processes["superlink"].poll() is None:
            try:
                if httpx.get(
                    f"{scheme}://{LOOPBACK}:{self.port}/health", verify=verify, trust_env=False
                ).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise RuntimeError(f"The SuperLink did not start.\n{self.logs()}")

    def add_supernode(self, partition, num_partitions, command="flower-supernode"):
        """Start an authenticated SuperNode over TLS that holds one partition."""
        key = ec.generate_private_key(ec.SECP384R1())
        private, public = self.folder / f"node{partition}", self.folder / f"node{partition}.pub"
        ssh, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, ssh, none))
        encoding = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        public.write_bytes(key.public_key().public_bytes(*encoding))
        self.flwr("supernode", "register", str(public), "here")
        return self.start(
            f"supernode-{partition}",
            command,
            "--superlink",
            f"{LOOPBACK}:{self.port}",
            "--root-certificates",
            str(self.folder / "ca.pem"),
            "--auth-supernode-private-key",
            str(private),
            "--host",
            LOOPBACK,
            "--port",
            str(free_port()),
            "--node-config",
            f"partition-id={partition} num-partitions={num_partitions}",
        )

    def add_supernodes(self, number):
        """Start so many SuperNodes, and wait until the SuperLink lists all of them as online."""
        with ThreadPoolExecutor() as at_once:
            list(
                at_once.map(lambda partition: self.add_supernode(partition, number), range(number))
            )
        self.wait_for_supernodes(number)

    def wait_for_supernodes(self, number, seconds=180):
        """Wait until the SuperLink lists so many SuperNodes as online; raises with all logs when one has ended."""
        end = time.monotonic() + seconds
        while not self._are_online(number):
            ended = [
                name
                for name, of in self.processes.items()
                if name.startswith("super") and of.poll() is not None
            ]
            if ended or time.monotonic() > end:
                raise RuntimeError(
                    f"Fewer than {number} SuperNodes came online; ended: {ended}.\n{self.logs()}"
                )
            time.sleep(0.5)

    def _are_online(self, number):
        logs = [self.log(name) for name in self.processes if name.startswith("supernode-")]
        if (
            sum("SuperNode ID" in log for log in logs) < number
        ):  # the SuperLink is asked last: a question is a process
            return False
        return (
            self.flwr("supernode", "list", "here", "--format", "json").count('"online"') >= number
        )

    def start(self, name, *command):
        """Start a process, its output in `name`.log."""
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                cwd=self.folder,
            )
        return self.processes[name]

    def start_run(self, app, run_config, nodes=None):
        """Start `flwr run APP --stream`; it ends when the run ends. `nodes`: how many clients the simulation has."""
        overrides = " ".join(
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={str(value).lower()}"
            for key, value in run_config.items()
        )
        command = ["flwr", "run", str(app), "here", "--stream", "--run-config", overrides]
        if nodes is not None:
            command += [
                "--federation-config",
                f"num-supernodes={nodes} client-resources-num-cpus=1",
            ]
        return self.start("run", *command)

    def run(self, app, run_config, nodes=None, timeout=900):
        """Run an app to its end and return what `flwr run` said; raises with all logs when it fails."""
        process = self.start_run(app, run_config, nodes)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = "timeout"
        if code != 0:
            raise RuntimeError(f"flwr run ended with {code}.\n{self.logs()}")
        return self.log("run")

    def run_and_kill_a_third_node(self, app, run_config, it_is_at_work, seconds=400):
        """Add SuperNode 2, start a run, kill the node at its work; returns what `flwr run` said, when it is over."""
        self.add_supernode(2, 3, QUICK / "flower-supernode")
        self.wait_for_supernodes(3)
        run, end = self.start_run(app, run_config), time.monotonic() + seconds
        while not it_is_at_work():
            if run.poll() is not None or time.monotonic() > end:
                raise RuntimeError(
                    f"The node that was to be killed did not come to its work.\n{self.logs()}"
                )
            time.sleep(0.1)
        self.kill("supernode-2")
        if run.wait(900) != 0:
            raise RuntimeError(f"flwr run failed.\n{self.logs()}")
        return self.log("run")

    def flwr(self, *arguments):
        """Run one short `flwr` command."""
        command = [str(BIN / "flwr"), *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            timeout=300,
            cwd=self.folder,
            encoding="utf-8",
        )
        if done.returncode:
            raise RuntimeError(
                f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}\n{self.logs()}"
            )
        return done.stdout

    def kill(self, name):
        """SIGKILL a process and all that came from it, as a power cut would."""
        killed = self.processes.pop(name)
        for process in family(killed.pid):
            end_process(process, "kill")
        killed.wait(10)

    def stop(self):
        """End everything we started; first politely, so that Flower and Ray end their own children.

        Flower's take ten seconds over it, for each tries to take leave of another that has gone.
        """
        ours = [process for started in self.processes.values() for process in family(started.pid)]
        for started in self.processes.values():
            if started.poll() is None:
                started.terminate()
        _, alive = psutil.wait_procs(ours, timeout=2)
        for process in alive:
            end_process(process, "kill")
        for started in self.processes.values():
            started.wait(10)

    def log(self, name):
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace", encoding="utf-8")

    def logs(self, lines=60):
        """The ends of all logs, for a failed test to show."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            end = path.read_text("utf-8", errors="replace").splitlines()[-lines:]
            parts.append(f"----- {path.name}\n" + "\n".join(end))
        return "\n".join(parts)


def course_app(folder):
    """A folder with what Flower's bundle of the course holds: the app's description and its licence.

    `flwr run` reads the name of every file below an app's folder, in the repository also those of .venv, for half a
    minute of computing.
    """
    folder = Path(folder) / "app"
    folder.mkdir(exist_ok=True)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def family(pid):
    """A process and all its descendants; Flower's executors leave the process group of what started them."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_process(process, how):
    """Send "kill" or "terminate" to a process that may be gone already."""
    try:
        process.kill() if how == "kill" else process.terminate()
    except psutil.NoSuchProcess:
        pass


def free_port():
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


def make_certificates(folder):
    """A certificate authority (ca.pem) and a server certificate for 127.0.0.1 signed by it (server.pem, server.key)."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name, key, issuer, issuer_key, extension):
        build = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
        )
        build = build.serial_number(x509.random_serial_number()).not_valid_before(
            now - datetime.timedelta(minutes=5)
        )
        build = build.not_valid_after(now + datetime.timedelta(days=1)).add_extension(
            extension, critical=True
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        return build.add_extension(identifier, critical=False).sign(issuer_key, hashes.SHA256())

    authority, server = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    can_sign, serves = (
        x509.BasicConstraints(ca=True, path_length=0),
        x509.SubjectAlternativeName(addresses),
    )
    pem = serialization.Encoding.PEM
    ca = certificate("test authority", authority, "test authority", authority, can_sign)
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    own = certificate("localhost", server, "test authority", authority, serves)
    (folder / "server.pem").write_bytes(own.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(server.private_bytes(pem, *plain))


def _name(name):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


# ---- what a run must give: the notebook's result


@contextmanager
def on_one_thread():
    """Compute in this process as Flower's processes do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def adapter_of_the_notebook(scenario, folder):
    """The adapter, by name, that `LabGrid` gives for a `Scenario`."""
    from safetensors.torch import load_file

    from fedgen_lab.federation import run_app
    from fedgen_lab.flower_app import client_app, server_app

    path = Path(folder) / "here.safetensors"
    config = {**scenario.to_run_config(), "experiment": "lora", "save-to": str(path)}
    with on_one_thread():
        run_app(server_app, client_app, scenario.num_clients, config)
    return load_file(path)


def assert_equal(there, here):
    """Tensors with the same names and, but for rounding, the same numbers."""
    assert there.keys() == here.keys()
    assert (
        max((there[name].double() - here[name].double()).abs().max().item() for name in here) < 1e-5
    )


def assert_equal_and_trained(there, here):
    """The same adapter, and one that learned: LoRA's B begins with zeros."""
    assert_equal(there, here)
    assert (
        max(value.abs().max().item() for name, value in there.items() if ".lora_B." in name) > 1e-4
    )
