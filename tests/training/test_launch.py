"""Several processes: the arguments, the SLURM script under a stand-in SLURM, and a real run of two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

import mmbert.training.run
from mmbert.cli.main import run
from mmbert.errors import TrainingError, TrainingStopped, UsageError
from mmbert.model import ranks
from mmbert.training.launch import Job, batch_script, launch, submit
from mmbert.training.recipe import Recipe
from mmbert.training.run_folder import failing_clearly

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize("nodes", ["0", "two", "4:2", "1:"])
def test_a_wrong_number_of_machines_is_told(nodes: str) -> None:
    with pytest.raises(UsageError, match="neither a number"):
        launch(["x"], processes=1, nodes=nodes)


def test_several_machines_need_a_place_to_meet() -> None:
    with pytest.raises(UsageError, match="--rdzv HOST:PORT"):
        launch(["x"], processes=1, nodes="2")


@pytest.mark.parametrize("place", ["node1", "node1:port", ":29500", "http://node1:29500"])
def test_a_place_to_meet_has_a_port(place: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        launch(["x"], processes=1, nodes="2", rendezvous=place)


def test_machines_that_do_not_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*args: object, **named: object) -> None:
        raise RendezvousConnectionError("cannot connect")

    monkeypatch.setattr("torch.distributed.launcher.api.launch_agent", nobody)
    with pytest.raises(TrainingError, match=r"did not meet at nowhere:29500: cannot connect.*a free port"):
        launch(["x"], processes=1, nodes="2", rendezvous="nowhere:29500")


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, srun, scontrol and mmbert; what they are called with stands in ``calls``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    program(folder, "sbatch", f'echo "sbatch $*" >> {calls}; echo "Submitted batch job 77"')
    program(folder, "scontrol", f'[ "$1" = show ] && echo node1 || echo "scontrol $*" >> {calls}')
    # like srun: starts the task, hands signals on, ends with its code
    program(
        folder,
        "srun",
        f'echo "srun $*" >> {calls}; shift; export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1\n'
        '"$@" & task=$!; trap "again=1; kill -USR1 $task" USR1; again=1\n'
        'while [ -n "$again" ]; do again=; wait $task; code=$?; done; exit $code',
    )
    program(
        folder,
        "mmbert",
        f'echo "mmbert $* rank $RANK of $WORLD_SIZE at $MASTER_ADDR" >> {calls}\n'
        "trap 'echo saved >> state; exit 75' USR1; touch started\n"
        "[ -f state ] && exit 0; for i in $(seq 400); do sleep 0.05; done; exit 1",
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_script_asks_for_what_was_said() -> None:
    job = Job(nodes=2, gpus=4, hours=1.5, notice=90, partition="long", account="lab", setup="module load python")
    text = batch_script("my run", ["retrieval", "--data", "a folder"], job)
    for line in (
        "--job-name=my-run", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=01:30:00",
        "--partition=long", "--account=lab", "--signal=B:USR1@90", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load python\n" in text
    assert "gpus-per-node" not in batch_script("x", ["y"], Job(gpus=0))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_preempted_job_saves_goes_back_into_the_queue_and_then_ends(cluster: Path) -> None:
    script = Path("job.sbatch")
    script.write_text(batch_script("x", ["retrieval", "--data", "a folder"], Job()))
    first = subprocess.Popen(["bash", str(script)])
    for _ in range(1200):
        if Path("started").exists():
            break
        time.sleep(0.05)
    time.sleep(0.1)
    first.send_signal(signal.SIGUSR1)
    first.wait(60)
    assert Path("state").read_text() == "saved\n"
    assert "scontrol requeue 77" in cluster.read_text()
    assert "mmbert train retrieval --data a folder rank 0 of 1 at node1" in cluster.read_text()
    again = subprocess.run(["bash", str(script)], check=False)
    assert again.returncode == 0
    assert cluster.read_text().count("requeue") == 1


def test_a_script_is_submitted(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["slurm", "retrieval", "--nodes", "2", "--gpus", "4", "--submit", "--data", "photos", "epochs=3"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 77\n"
    assert cluster.read_text() == "sbatch retrieval.sbatch\n"
    assert "train retrieval --data photos epochs=3" in Path("retrieval.sbatch").read_text()


def test_what_sbatch_refuses_is_told(cluster: Path) -> None:
    program(cluster.parent / "bin", "sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    with pytest.raises(TrainingError, match="invalid partition"):
        submit(Path("x.sbatch"))


def test_without_slurm_the_script_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["slurm", "retrieval", "--submit"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert Path("retrieval.sbatch").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nmae=3"], "did you mean 'name'"),
        (["--dta", "photos"], "--dta"),
        (["--script", "nowhere/x.sbatch"], "there is no folder nowhere"),
    ],
)
def test_a_script_that_could_not_train_is_not_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["slurm", "retrieval", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def launched(recipe: Recipe, folder: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [
        sys.executable,
        "-m",
        "mmbert",
        "launch",
        "--nproc",
        str(processes),
        str(path),
        "--out",
        str(folder / "out"),
    ]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.parametrize(
    ("saved", "code", "said"),
    [
        (False, 1, "process 0 ended with code 1"),
        (True, 1, "process 0 ended with code 1"),
        (False, 75, "stopped by a signal"),
        (True, -9, "process 0 was ended by SIGKILL .a machine without memory left"),
    ],
)
def test_going_on_is_spoken_of_where_there_is_something_to_go_on_from(
    saved: bool,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program(tmp_path, "python", f"exit {code}" if code > 0 else f"kill -{-code} $$")
    if saved:
        (tmp_path / "out" / "first" / "state" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(TrainingError, match=said) as caught:
        launch(["x"], processes=1, folder=tmp_path / "out")
    assert capfd.readouterr() == ("", ""), "the launcher's own log is for those who mend it"
    assert ("goes on" in str(caught.value.hint)) == (saved or code == 75)


def test_a_mistake_in_a_recipe_is_told_before_processes_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    assert run(["launch", "--nproc", "1", "retreval"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'retrieval'" in said and "goes on" not in said


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(recipe_of: MakeRecipe, tmp_path: Path, photos: Path) -> None:
    """Where only the first of two checkpoints is left, a single process goes on with the next batch."""
    recipe = recipe_of(steps=4, save_every=2, evaluation={"data": str(photos), "every": 2}, augment={}, accumulation=2)
    done = launched(recipe, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1, "one process speaks"
    assert done.stderr == ""
    manifest = json.loads((tmp_path / "out" / "state" / "checkpoint-2" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["batches"], manifest["planned"]) == (2, 8, 16)
    assert {p.name for p in (tmp_path / "out" / "state" / "checkpoint-2").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    shutil.rmtree(tmp_path / "out" / "state" / "checkpoint-4")
    assert run(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    last = json.loads((tmp_path / "out" / "state" / "checkpoint-4" / "manifest.json").read_text())
    assert (last["world_size"], last["batches"]) == (1, 8 + 4)
    failed = launched(recipe, tmp_path, 2, "optimizr.lr=1")
    assert failed.returncode == 2
    assert "did you mean 'optimizer'" in failed.stderr


def test_a_group_is_left_at_the_end_and_one_that_is_not_there_does_no_harm() -> None:
    ranks.leave()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks.leave()
    assert not dist.is_initialized()
    ranks.leave()


LINE = "Read error [127.0.0.1]:27028: Connection reset by peer. This is typically caused by a remote worker hanging"


def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="another process of the run is gone"), failing_clearly(tmp_path):
        raise RuntimeError(f"[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] {LINE}")
    with pytest.raises(RuntimeError, match="shapes differ"), failing_clearly(tmp_path):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_that_all_have_stopped_is_said_once(
    rank: str,
    said: int,
    recipe_of: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*args: object, **named: object) -> None:
        raise TrainingStopped("stopped by SIGTERM after step 3")

    monkeypatch.setattr(mmbert.training.run, "train", stopped)
    monkeypatch.setenv("RANK", rank)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of().model_dump(mode="json")))
    assert run(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 75
    assert capsys.readouterr().err.count("stopped by SIGTERM") == said


def test_ctrl_c_is_no_stop_with_a_checkpoint(tmp_path: Path) -> None:
    """In a process of its own: the signal is for whoever started the processes."""
    program(tmp_path, "python", "kill -INT $PPID; sleep 60")
    text = f"""
import signal, sys
from mmbert.training.launch import launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without
sys.executable = {str(tmp_path / "python")!r}
try:
    launch(["x"], processes=1)
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", text], check=False, timeout=300).returncode == 7
