"""Several processes: started here by PyTorch's elastic launcher (torchrun), or by SLURM through a batch script."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbert.errors import TrainingError, TrainingStopped, UsageError
from mmbert.training.allocator import tuned
from mmbert.training.checkpoints import checkpoints
from mmbert.training.run_folder import FIRST

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What the launcher hands on to the processes."""
GOES_ON = "the same command goes on from the last checkpoint"
REMARKS = ("TORCH_CPP_LOG_LEVEL", "ERROR")
"""Set where processes start: DDP remarks that each parameter got a gradient, which a mixture does not promise."""
GRACE = 600
"""Seconds that the processes then have to write a checkpoint."""


def launch(
    arguments: Sequence[str],
    *,
    processes: int,
    nodes: str = "1",
    rendezvous: str | None = None,
    job: str = "mmbert",
    folder: Path | None = None,
) -> None:
    """Run ``mmbert train`` with these arguments in several processes, here and (called there too) on other machines.

    Args:
        arguments: of ``mmbert train``.
        processes: on this machine.
        nodes: machines, or ``MIN:MAX``.
        rendezvous: ``HOST:PORT`` where they meet; one of the machines. None: this machine is alone.
        job: any name that the machines have in common.
        folder: of the run, to say whether there is something to go on from.

    Raises:
        UsageError: several machines, but no place to meet.
        TrainingError: they did not meet there.
        TrainingStopped: a signal ended the run; it has written a checkpoint.
        TrainingError: a process failed (it has said why).
        KeyboardInterrupt: somebody pressed Ctrl-C.
    """
    fewest, _, most = nodes.partition(":")
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", nodes) or int(most or fewest) < int(fewest):
        raise UsageError(f"--nnodes {nodes!r} is neither a number nor MIN:MAX")
    if nodes != "1" and rendezvous is None:
        raise UsageError("several machines need a place to meet", hint="--rdzv HOST:PORT, the same on all of them")
    if rendezvous is not None and not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):\d+", rendezvous):
        raise UsageError(f"--rdzv {rendezvous!r} is not HOST:PORT", hint="one of the machines, as in node1:29500")
    os.environ.setdefault(*REMARKS)  # before PyTorch is there
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.update(tuned(os.environ))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=int(fewest),
        max_nodes=int(most or fewest),
        nproc_per_node=processes,
        run_id=job,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        max_restarts=0,
        signals_to_handle=SIGNALS,
    )
    _quiet()
    try:
        elastic_launch(config, sys.executable)("-m", "mmbert", "train", *arguments)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error  # the first process has said what is left
        raise TrainingStopped(
            f"stopped by {error.sigval.name}", hint=GOES_ON if _has_checkpoint(folder) else None
        ) from error
    except RendezvousError as error:
        raise TrainingError(
            f"the machines did not meet at {rendezvous}: {error}",
            hint="--rdzv names one of them, by a name and a free port that all can reach, and the command runs on each",
        ) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        stopped = failure.exitcode == TrainingStopped.exit_code
        kind = TrainingStopped if stopped else TrainingError
        raise kind(
            "stopped by a signal" if stopped else f"process {rank} {_how_it_ended(failure.exitcode)}",
            hint=_what_it_said(failure.exitcode) + (f"; {GOES_ON}" if stopped or _has_checkpoint(folder) else ""),
        ) from error


def _how_it_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _what_it_said(code: int) -> str:
    return "a machine without memory left does that" if code == -signal.SIGKILL else "what it said stands above"


def _quiet() -> None:
    """The launcher's own log repeats, with its insides, what our errors say."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _has_checkpoint(folder: Path | None) -> bool:
    """Whether a run, or its first stage, has something to go on from."""
    return folder is not None and any(checkpoints(part / "state") for part in (folder, folder / FIRST))


@dataclass(frozen=True)
class Job:
    """What a SLURM job asks for.

    Attributes:
        nodes, gpus: machines, and GPUs (one process each) on each; 0 GPUs: one process a machine, on its CPUs.
        hours: time limit.
        notice: seconds before the end at which SLURM sends SIGUSR1.
        partition, account: where the site wants them.
        cpus: per process.
        setup: shell lines that make ``mmbert`` available (``module load …``, ``source …``).
    """

    nodes: int = 1
    gpus: int = 1
    hours: float = 24.0
    notice: int = 180
    partition: str | None = None
    account: str | None = None
    cpus: int = 8
    setup: str = ""


def batch_script(name: str, arguments: Sequence[str], job: Job) -> str:
    """The text of an sbatch script that trains, and goes on by itself after preemption and at its time limit.

    SLURM starts one process per GPU; the processes meet at the first machine. SIGUSR1 reaches the script, which hands
    it on; the run writes a checkpoint and ends with code 75, and the job is put back into the queue.
    """
    minutes = max(1, round(job.hours * 60))
    options = {
        "job-name": re.sub(r"[^\w.-]", "-", name),
        "nodes": job.nodes,
        "ntasks-per-node": max(1, job.gpus),
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": job.cpus,
        "time": f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:USR1@{job.notice}",
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    asked = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    each = (
        "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS "
        f"exec mmbert train {shlex.join(arguments)}"
    )
    return "\n".join(
        [
            "#!/bin/bash",
            *asked,
            "#SBATCH --requeue",
            "",
            *([job.setup] if job.setup else []),
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
            f"OMP_NUM_THREADS={job.cpus}",
            f"{'='.join(REMARKS)}",
            f"export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS {REMARKS[0]}",
            "",
            f"srun --kill-on-bad-exit=0 bash -c {shlex.quote(each)} &",
            "running=$!",
            "trap 'again=1; kill -USR1 $running' USR1 TERM",
            "again=1",
            'while [ -n "$again" ]; do  # a signal interrupts the waiting',
            "    again=",
            "    wait $running",
            "    code=$?",
            "done",
            "# 138: the signal came before the run listened to it",
            f'if [ "$code" -eq {TrainingStopped.exit_code} ] || [ "$code" -eq 138 ]; then',
            '    exec scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def submit(script: Path) -> str:
    """Hand a script to ``sbatch``; its answer.

    Raises:
        TrainingError: there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise TrainingError("there is no sbatch here", hint="submit the script where SLURM is")
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrainingError(f"sbatch: {done.stderr.strip() or done.stdout.strip()}", where=str(script))
    return done.stdout.strip()
