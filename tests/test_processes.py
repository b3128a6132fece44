"""No process outlives the one that started it, however that ends, in any place that starts some."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from models.processes import fresh_processes, output, program

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
PATIENCE = 120

SLEEPS = "import time; time.sleep(600)"
SWEEP = """
from pathlib import Path
from models.data.corpus import CorpusConfig
from models.sweeps.run import SweepConfig, run_sweep
from models.training.run import ModelConfig, Recipe
Path("text.txt").write_text("and the quick brown fox; " * 400)
Path("other.txt").write_text("jumps over the lazy dog; " * 400)
run_sweep(SweepConfig(
    budgets=(1e12,), shapes=((4, 1), (8, 2)), device="cpu", workers=2,
    model=ModelConfig(num_latents=8, num_prefix=6, num_heads=2),
    corpus=CorpusConfig(files=("*.txt",), cache=Path("cache")),
    recipe=Recipe(batch_size=2),
), Path("sweep"), quiet=True)
"""
RAY_SWEEP = """
import os
os.environ["RAY_worker_niceness"] = "0"  # else Ray's workers give way to every other process
def say_who_trains(name, step):
    if step:
        Path(f"{os.getpid()}.trains").touch()
""" + SWEEP.replace("workers=2", "cluster='ray'").replace("True", "True, on_step=say_who_trains")
PLACES = {  # source, and how many processes it has at least when all have been started
    # the tracker of multiprocessing, a fork server and two runs
    "sweep": (SWEEP, 5),
    # the sweep, too; the one that is left alone is left out
    "kill test": (
        "from pathlib import Path; from models.sweeps import kill_test\n"
        "kill_test.run_sweep = lambda *_, **__: None\n"
        "kill_test.kill_test(Path('killed'), kills=50, sweep_share=0)",
        6,
    ),
    # the tracker and two workers
    "verification": ("from validate import verification; verification.record(2, anew=True)", 4),
    "compilers": (
        "from validate.compiled_record import shipped_launches\n"
        "from validate.witnesses.compiled_code import compile_all\n"
        "compile_all(shipped_launches(), jobs=2)",
        4,
    ),
    "compile ahead": (
        "import time, torch; torch.cuda.is_available = lambda: True\n"
        "from benchmarks.attention import timing; timing._run_once = time.sleep\n"
        "timing.compile_ahead([(600,), (600,)], 2)",
        4,
    ),
    "tune": (
        "import time, torch; torch.cuda.is_available = lambda: True\n"
        "from benchmarks.tiling import tune\n"
        "with tune._pool(2) as pool: list(pool.map(time.sleep, [600, 600]))",
        4,
    ),
    "random cases": (
        "from pathlib import Path; from benchmarks.attention import soundness\n"
        "soundness.check_random(Path(), cases=1000, largest=200, jobs=2)",
        4,
    ),
    # the guard, the tool's shell, and what it starts
    "sanitizer": (
        "from benchmarks.attention import soundness; soundness.check_sanitizer(['memcheck'])",
        4,
    ),
    "profiler": (
        "from pathlib import Path; from benchmarks.counters import profiler\n"
        "profiler.profile('benchmarks', ['counters'], Path('log'))",
        4,
    ),
    "schedule": (
        "from pathlib import Path; from benchmarks import schedule\n"
        "schedule.run_part(['starts_another'], Path('log'), 600)",
        4,
    ),
}


def runs(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def marked(marker: str) -> list[int]:
    """Processes that run with the marker in their environment, as all descendants do."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if marker.encode() in (process / "environ").read_bytes() and runs(int(process.name)):
                pids.append(int(process.name))
    return pids


def wait_for(condition, seconds=PATIENCE):
    """Whether the condition holds within some seconds."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts Python source, and at the end of the test kills whatever is left of it."""
    marker = uuid.uuid4().hex
    for name in ("compute-sanitizer", "ncu"):
        (tmp_path / name).write_text("#!/bin/sh\nsleep 600 &\nwait\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "starts_another.py").write_text(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
    )

    def run(source):
        # A shell has its background jobs, of which the tests may be one, ignore SIGINT.
        heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        (tmp_path / "main.py").write_text(
            f"{heeding}\nif __name__ == '__main__':\n exec({source!r})"
        )
        environment = os.environ | {
            "MARKER": marker,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "TRITON_INTERPRET": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "main.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        )
        return process, lambda: marked(marker)

    yield run
    for pid in marked(marker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@LINUX
@pytest.mark.parametrize("place", PLACES)
def test_no_process_outlives_its_parent(start, place):
    source, number = PLACES[place]
    process, running = start(source)
    started = wait_for(lambda: len(running()) >= number or process.poll() is not None)
    assert started, f"{running()}: expected {number}"
    assert process.poll() is None, process.stderr.read().decode()
    process.kill()
    process.wait()
    assert wait_for(lambda: not running(), 30), running()


@LINUX
def test_no_run_outlives_its_sweep_on_ray(start, tmp_path):
    """Ray's own servers are left out: two of them wait a minute for the third before they end."""
    pytest.importorskip("ray", reason="needs the extra ray")
    process, _ = start(RAY_SWEEP)

    def training():
        return [int(file.stem) for file in tmp_path.glob("*.trains")]

    assert wait_for(lambda: training() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read().decode()
    process.kill()
    process.wait()
    assert wait_for(lambda: not any(map(runs, training())), 30), training()


POOL = f"""
from models.processes import fresh_processes
with fresh_processes(2) as pool:
    list(pool.map(exec, ["{SLEEPS}"] * 2))
"""
PROGRAM = """
import sys
from models.processes import output
output([sys.executable, "-m", "starts_another"])
"""


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    ("source", "processes"), [(POOL, 4), (PROGRAM, 4)], ids=["pool", "program"]
)
def test_whatever_ends_the_parent_ends_its_children(start, source, processes, number):
    process, running = start(source)
    assert wait_for(lambda: len(running()) >= processes)
    process.send_signal(number)
    assert wait_for(lambda: process.poll() is not None or source is POOL, 30)
    if number == signal.SIGINT and source is POOL:
        # As in a terminal, which interrupts the workers, too.
        for pid in running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    assert wait_for(lambda: not running(), 30), running()


@LINUX
def test_a_child_that_is_left_behind_would_be_seen(start):
    process, running = start(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
    )
    assert wait_for(lambda: len(running()) == 2)
    process.kill()
    process.wait()
    assert not wait_for(lambda: not running(), 2)


def test_a_programs_output_and_status_are_kept():
    done = output([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError), program(["no-such-program"]):
        pass


def test_what_has_not_begun_when_a_pool_fails_is_not_begun(tmp_path):
    def fail():
        with fresh_processes(1) as pool:
            for number in range(8):
                pool.submit(exec, f"open({str(tmp_path / str(number))!r}, 'w'); {SLEEPS[:-4]}0.2)")
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fail()
    # One ran, and one or two had been handed on.
    assert len(list(tmp_path.iterdir())) < 4


STARTS = re.compile(r"subprocess\.(run|Popen|call|check_\w+)\(|ProcessPoolExecutor\(|get_context\(")
ALLOWED = {
    "models/processes.py": "ends them with their parent",
    "models/sweeps/local.py": "its fork server's children call end_with_parent",
    "models/sweeps/kill_test.py": "its sweep calls end_with_parent",
    "models/provenance.py": "git answers at once",
    "validate/witnesses/compiled_code.py": "nvdisasm answers at once",
    "models/results.py": "nvidia-smi answers at once",
    "benchmarks/test_counter.py": "an import is timed",
}


def test_processes_are_started_in_one_way():
    packages = ("flopcount", "kernels", "models", "validate", "benchmarks")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    found = {p.relative_to(ROOT).as_posix() for p in modules if STARTS.search(p.read_text())}
    assert found == set(ALLOWED)
