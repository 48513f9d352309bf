"""Commands as jobs, against a head with a job server and token authentication."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from local_head import ROOT, Head, start_head
from ray._private.runtime_env.packaging import create_package

from diffplan.cli import main
from diffplan.cli.submit import SUBMITTABLE, check_places
from diffplan.cluster.jobs import job_server
from diffplan.cluster.jobs import submit as submit_module
from diffplan.cluster.jobs.job_server import Tail, protect_token
from diffplan.cluster.jobs.submit import EXCLUDES, Upload, check_upload, make_entrypoint, make_runtime_env
from diffplan.cluster.ray_private import make_exclusion
from diffplan.errors import ClusterError, ConfigError

PRESET = "maze2d-umaze-smoke"
JOB = """\
import sys, time
import ray
import diffplan.uploaded

@ray.remote(num_cpus=1)
def find_code():
    import diffplan.uploaded
    return diffplan.uploaded.__file__

code = int(sys.argv[sys.argv.index("--num_workers") + 1])
print("begun with", sys.argv[1:], flush=True)
if code == 60:
    time.sleep(60)
if code == 1:
    ray.init(log_to_driver=False)
    print("a worker has", ray.get(find_code.remote()))
    code = 0
sys.exit(code)
"""
"""Stands in for `jobs/collect.py`: what it does depends on the number of workers."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with start_head() as head:
        yield head


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout: a job, a package, and data that must stay where it is."""
    root = tmp_path_factory.mktemp("checkout")
    files = {"jobs/collect.py": JOB, "platform/diffplan/__init__.py": "", "platform/diffplan/uploaded.py": ""}
    for name, text in {**files, "data/umaze/shards/0.arrow": "rows", "runs/latest/report.html": "page"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_job_runs_what_was_uploaded_and_its_output_is_shown(head: Head, upload: Path, tmp_path: Path) -> None:
    done = head.run(
        *("submit", "--working-dir", upload, "collect", PRESET, "--num_workers", 1, "--out", tmp_path / "a place")
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"job: raysubmit_\w+\n", done.stdout)
    assert f"begun with ['{PRESET}', '--num_workers', '1', '--out', '{tmp_path}/a place']" in done.stdout
    (code,) = re.findall(r"a worker has (.*)", done.stdout)
    assert code.endswith("platform/diffplan/uploaded.py")
    assert "working_dir_files" in code  # Ray's folder for uploads
    package = Path(code).parents[2]
    assert not (package / "data").exists()
    assert not (package / "runs").exists()
    assert done.stderr == ""


@pytest.mark.slow
def test_what_the_user_can_cure_ends_with_its_line_and_code_2(head: Head, tmp_path: Path) -> None:
    (tmp_path / "something else").touch()
    done = head.run("submit", "collect", PRESET, "--out", tmp_path, "--working_dir", ROOT)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: {tmp_path}: expected a new or empty directory or a dataset" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.slow
def test_a_job_that_fails_otherwise_is_code_1(head: Head, upload: Path) -> None:
    done = head.run("submit", "collect", PRESET, "--num_workers", 7, "--out", "/x", "--working_dir", upload)
    assert done.returncode == 1
    assert re.fullmatch(r"error: raysubmit_\w+: the job failed with exit code 7; see its output above\n", done.stderr)


@pytest.mark.slow
def test_ctrl_c_stops_following_and_ray_goes_on_with_the_job(head: Head, upload: Path) -> None:
    options = ("--num_workers", 60, "--out", "s3://bucket/x", "--working_dir", upload)
    with head.start("submit", "collect", PRESET, *options) as following:
        assert following.stdout is not None
        job = following.stdout.readline().removeprefix("job: ").strip()
        while "begun with" not in following.stdout.readline():
            assert following.poll() is None
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    assert err == (
        f"\ninterrupted; the job goes on: `ray job logs --follow {job}`, or end it by `ray job stop {job}`\n"
    )
    assert "RUNNING" in head.run_ray("job", "status", job)
    assert f"'{job}' was stopped" in head.run_ray("job", "stop", job)
    assert "begun with" in head.run_ray("job", "logs", job)
    assert job in head.run_ray("job", "list")


@pytest.mark.slow
def test_a_job_that_is_not_waited_for_goes_on(head: Head, upload: Path) -> None:
    options = ("--num_workers", 60, "--out", "s3://bucket/x", "--working_dir", upload)
    submitted = head.run("submit", "collect", PRESET, *options, "--no-wait")
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.removeprefix("job: ").strip()
    assert re.search("PENDING|RUNNING", head.run_ray("job", "status", job))
    head.run_ray("job", "stop", job)


def test_ctrl_c_ends_the_waiting_for_what_swallows_a_cancellation() -> None:
    class Client:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "begun\n"
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    since = time.monotonic()
    tail = Tail(Client(), "job", write)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        tail.follow()
    assert time.monotonic() - since < 5
    assert written == ["begun\n"]


def test_a_lost_connection_is_taken_up_where_it_was() -> None:
    class Client:
        connections = (["one ", "two "], ["one two ", "three "], ["one ", "two three ", "four"])
        tried = 0

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            self.tried += 1
            for text in self.connections[self.tried - 1]:
                yield text
            if self.tried < len(self.connections):
                raise RuntimeError("WebSocket connection closed unexpectedly")

    written: list[str] = []
    client = Client()
    tail = Tail(client, "job", written.append)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(RuntimeError):
            tail.follow()
    tail.follow()
    assert written == ["one ", "two ", "three ", "four"]


@pytest.mark.slow
def test_mistakes_at_the_server_are_one_line(head: Head) -> None:
    for arguments, environment, words in (
        ([], {"RAY_AUTH_TOKEN": "0" * 32}, "the token of the cluster, got another: export RAY_AUTH_"),
        ([], {"RAY_AUTH_TOKEN": ""}, "the token of the cluster, got none: export RAY_AUTH_"),
        (["--num_gpus", 2], {}, "expected a node with 2 GPUs for the command, got at most 0 GPUs"),
    ):
        done = head.run("submit", "collect", PRESET, "--out", "/x", "--working_dir", ROOT, *arguments, **environment)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert main(["submit", "collect", PRESET, "--out", "/x"]) == 2
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1:1: expected the job server of a Ray cluster")
    since = time.monotonic()
    assert main(["submit", "collect", PRESET, "--out", "/x", "--address", "127.0.0.1:1"]) == 2
    assert "127.0.0.1:1: expected the job server of a Ray cluster, got no answer" in capsys.readouterr().err
    assert time.monotonic() - since < 10


def test_a_second_head_on_a_host_is_told_which_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def submit_job(self, **arguments: object) -> str:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job")

    monkeypatch.setattr(job_server, "READY_SECONDS", 0)
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(job_server.JobServer, "_require_node", lambda *_: None)
    server = object.__new__(job_server.JobServer)
    server.address, server._client = "http://127.0.0.1:8266", Client()  # type: ignore[assignment]
    with pytest.raises(ClusterError, match=r"it has taken port 52365: start .* --dashboard-agent-listen-port PORT"):
        server.submit("true", runtime_env={})


def test_modules_are_looked_for_in_the_directory_that_is_uploaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "of_a_job.py").write_text("from diffplan.tasks.task import Task\n\nTASK = Task(name='of_a_job')\n")
    options = ["--env.env_id", "Pendulum-v1", "--out", "/x", "--address", "127.0.0.1:1"]
    assert main(["submit", "collect", "of_a_job:TASK", *options]) == 2
    assert "expected a module that can be imported, got 'of_a_job'" in capsys.readouterr().err
    assert main(["submit", "--working_dir", str(tmp_path), "collect", "of_a_job:TASK", *options]) == 2
    assert "expected the job server of a Ray cluster, got no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("collect maze2d-umaze --out data/x", "--out: expected an absolute path or a URL .*, got data/x"),
        ("train maze2d-umaze --data data/x --out /x", "--data: .* got data/x"),
        ("train maze2d-umaze --data /x --out s3://b/x --tensorboard curves", "--tensorboard: .* got curves"),
        ("tune models/umaze --out /x", "source: .* got models/umaze"),
        ("tune pretrained:maze2d-umaze --out /x --study mine.json", "--study: .* got mine.json"),
        ("evaluate models/umaze --protocol maze2d --out /x", "policy: .* got models/umaze"),
        (
            "evaluate baseline:waypoint --env_id diffplan/Maze2D-UMaze-v1 --protocol maze2d --out results",
            "--out: .* got results",
        ),
        ("pipeline maze2d-umaze", "--out: .* got none"),
        ("table maze2d --out runs/table1", "--out: .* got runs/table1"),
        ("baseline train cql data/umaze --out /x", "dataset: .* got data/umaze"),
    ],
)
def test_paths_that_only_the_submitter_knows_are_refused(command: str, expected: str) -> None:
    name, *arguments = command.split()
    with pytest.raises(ConfigError, match=expected):
        check_places(name, arguments)


@pytest.mark.parametrize(
    "command",
    [
        "collect maze2d-umaze --out /x",
        "train maze2d-umaze --data s3://b/x --out s3://b/y",
        "tune pretrained:maze2d-umaze --out /x --study pareto",
        "evaluate baseline:waypoint --env_id diffplan/Maze2D-UMaze-v1 --protocol maze2d --out /x",
        "table maze2d --out /x --seeds 3",
        "baseline train iql /data --out /x",
    ],
)
def test_other_places_are_taken(command: str) -> None:
    name, *arguments = command.split()
    check_places(name, arguments)


def test_arguments_are_checked_before_anything_is_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        ("submit colect", "Did you mean 'collect'"),
        ("submit collect maze2d-umaze --out /x --num_cpus many", "--num_cpus: expected a number, got 'many'"),
        ("submit collect maze2d-umase --out /x", "did you mean 'maze2d-umaze'"),
        ("submit", "expected a command, one of collect"),
        ("submit table maze2d --out /x --num_gpus -1", "num_gpus: expected 0 or more, got -1"),
        ("submit tune /x --out /y --study plannr", "Did you mean 'planner'"),
        ("submit tune pretrained:maze2d-umaze --out /y --study traning", "Did you mean 'training'"),
        ("submit tune /x --out /y --study training", "expected --preset PRESET"),
        ("submit tune /x --out /y --preset maze2d-umaze", "--preset: expected none with a study of kind planner"),
        ("submit evaluate baseline:rndom --env_id Pendulum-v1 --out /x", "Did you mean 'random'"),
        ("submit evaluate baseline:random --out /x", "expected --env.env_id"),
        ("submit evaluate pretrained:maze2d-umase --out /x", "Did you mean 'maze2d-umaze'"),
        (
            "submit evaluate baseline:random --env_id diffplan/Maze2D-UMaze-v1 --out /x --protocol maze3d",
            "Did you mean 'maze2d'",
        ),
        ("submit evaluate /x --out /y --episodes 0", "--episodes: expected at least 1, got 0"),
        ("submit collect gymnasium --out /x", "expected the id of a Gymnasium environment, got none"),
        ("submit collect gymnasium --env.env_id CartPole-v1 --out /x", "continuous actions"),
        ("submit train gymnasium --env.env_id CartPole-v1 --data /x --out /y", "continuous actions"),
        ("submit pipeline gymnasium --env.env_id CartPole-v1 --out /x", "continuous actions"),
        ("submit train maze2d-umaze --data /x --out /y --num_workers 0", "--num_workers: expected at least 1"),
        ("submit baseline train iql /x --out /y --num_updates 0", "--num_updates: expected at least 1"),
    ):
        assert main(command.split()) == 2
        assert words in capsys.readouterr().err
    assert main(["submit", "train", "maze2d-umaze", "--data", "/x", "--out", "/x", "--num_worker", "2"]) == 2
    assert "did you mean --num_workers?" in capsys.readouterr().err
    assert main(["submit", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: diffplan submit")


def test_every_job_script_can_be_submitted(tmp_path: Path) -> None:
    of_commands = {"table1": "table", "locomotion": "table", "stacking": "table", "train_behavior": "behavior"}
    assert {of_commands.get(path.stem, path.stem) for path in (ROOT / "jobs").glob("*.py")} <= {*SUBMITTABLE}
    assert make_entrypoint("train", ["a b"], ROOT) == "python jobs/train.py 'a b'"
    assert make_entrypoint("train", ["a b"], tmp_path) == "diffplan train 'a b'"
    assert "env_vars" not in make_runtime_env(tmp_path)


def test_the_upload_has_all_code_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_excluded = make_exclusion(ROOT, EXCLUDES)
    code = [path for root in ("platform", "envs", "jobs") for path in (ROOT / root).rglob("*.py")]
    assert len(code) > 100
    assert not [path for path in code if is_excluded(path)]
    assert not [path for path in (ROOT / "platform/diffplan/pretrained").rglob("*.safetensors") if is_excluded(path)]
    monkeypatch.setattr(submit_module, "MAX_UPLOAD_BYTES", 1000)
    for name in ("data/umaze/shards/a.arrow", "runs/a", "elsewhere/shards/a.arrow", "ignored/a", ".env", ".git/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(2000))
    (tmp_path / ".rayignore").write_text("ignored\n")
    (tmp_path / "script.py").write_bytes(bytes(900))
    assert check_upload(tmp_path) == Upload(900 + len("ignored\n"), ())
    (tmp_path / "mine").write_bytes(bytes(2000))
    with pytest.raises(ClusterError, match=r"at most .* to upload, got more in .*; list what a job does not need in"):
        check_upload(tmp_path)
    with pytest.raises(ClusterError, match="expected a directory to upload, got"):
        check_upload(tmp_path / "none")


SECRETS = (
    *(".env", ".env.production", ".envrc", "prod.env", ".netrc", "a/.netrc", ".aws/credentials", ".ssh/config"),
    *("id_rsa", "id_rsa.pub", "keys/id_ed25519", "server.pem", "tls.key", "service-account.json", "credentials.json"),
    *("service_account_prod.json", "credentials", ".git-credentials", ".npmrc", ".pypirc", ".docker/config.json"),
    *("a/.docker/config.json", ".kube/config", "kubeconfig", "prod.kubeconfig", ".config/gcloud/a.json", ".pgpass"),
    *("client_secret_1.json", "secrets.yaml", "my-credentials.json", "terraform.tfstate", ".ray/auth_token"),
)


def list_uploaded(root: Path) -> list[str]:
    """What Ray itself packs."""
    environment = make_runtime_env(root, check_upload(root).left_out)
    package = root.parent / f"{root.name}.zip"
    excludes: list[str] = list(environment["excludes"])  # type: ignore[call-overload]
    create_package(str(root), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as opened:
        return sorted(name for name in opened.namelist() if not name.endswith("/"))


def test_what_secrets_are_usually_called_stays_here(tmp_path: Path) -> None:
    root, code = tmp_path / "root", ("environment.py", "credentials_of_us.py", "a/keys.py", "a/config.json", "token.py")
    for name in (*SECRETS, *code):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("secret")
    assert list_uploaded(root) == sorted(code)


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "code/real.py", root / ".env", root / "data/rows", outside / "secret", outside / "deep/secret"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    links = {
        "code/inside.py": root / "code/real.py",
        "inside": Path("code"),
        "secret": outside / "secret",
        "code/tree [1]*": outside,
        "#up": Path(".."),
        "code/loop": Path("."),
        "root": root,
        "self": Path("self"),
        "broken": Path("nowhere"),
        "hidden": root / ".env",
        "rows": root / "data/rows",
        "through": Path("secret"),
        "ignored": outside,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / ".gitignore").write_text("ignored\n")
    os.mkfifo(root / "pipe")
    expected = {".gitignore", "code/inside.py", "code/real.py", "inside/inside.py", "inside/real.py"}
    assert set(list_uploaded(root)) == expected
    left_out = check_upload(root).left_out
    assert {"secret", "code/tree [1]*", "#up", "code/loop", "root", "hidden", "rows", "through", "pipe"} <= {*left_out}
    assert "ignored" not in left_out  # the user has excluded it
    lines: list[str] = []
    submit_module.submit(RecordingServer(), "train", [], root, notice=lines.append)  # type: ignore[arg-type]
    (line,) = lines
    assert line.startswith(f"not uploaded (links out of {root} or to excluded files, pipes, devices): #up, ")
    assert "\n" not in line


class RecordingServer:
    def submit(self, entrypoint: str, **options: object) -> str:
        return "job"


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    monkeypatch.setattr(submit_module, "walk_upload", refuse)
    with pytest.raises(ClusterError, match=r"closed: cannot be read \(Permission denied\); list it in \.rayignore"):
        check_upload(tmp_path)


def test_a_token_is_readable_for_its_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "auth_token"
    protect_token(str(token))  # none there
    token.write_text("secret")
    for before in (0o644, 0o640, 0o600):
        token.chmod(before)
        protect_token(str(token))
        assert token.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""

    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    token.chmod(0o644)
    monkeypatch.setattr("diffplan.cluster.jobs.job_server.os.chmod", refuse)
    protect_token(str(token))
    err = capsys.readouterr().err
    assert err == f"{token}: others may read this token (Operation not permitted); make it readable for you only\n"
