"""``make demo``: the main job from one command, on real data, on this machine alone.

Starts a control plane in ``demo/``, submits ``examples/digits.yaml``, shows it learning, fetches
the ONNX model and lets onnxruntime read handwritten digits that no site ever trained on. Leaves
``model.onnx``, ``learning-curve.png`` and ``predictions.png`` in ``demo/``. However it ends,
nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console

from clients.cli.watching import conclude, show, write_lines
from clients.errors import FoedusError
from clients.job_files import read_job_file
from clients.predict import predict
from clients.resources import Round
from clients.sdk import Foedus, JobHandle
from clients.transport import Patience
from workflows.data.examples import Examples
from workflows.data.preparation import open_prepared, prepare
from workflows.job import JobSpec, Partitioned

JOB = Path(__file__).with_name("digits.yaml")
REQUIRED_ACCURACY = 0.95
START_S = 30.0
STOP_S = 20.0
NUM_SHOWN = 20
Follow = Callable[[JobHandle, Console], None]
BLUE, GREEN, RED, INK = "#2563eb", "#15803d", "#dc2626", "#1f2937"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if the model is good enough."""
    parser = argparse.ArgumentParser(description="The main job, end to end, on this machine.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where results go")
    parser.add_argument("--job", type=Path, default=JOB, help="the job to run")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console()
    try:
        return run(options.folder.absolute(), options.job, console)
    except KeyboardInterrupt:
        console.print("Interrupted; the job was cancelled and the server has stopped.")
        return 130
    except (FoedusError, DemoFailed) as error:
        console.print(str(error), style="red", markup=False)
        return 1


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


def follow(job: JobHandle, console: Console) -> None:
    """Show the job until it is closed: a live panel on a terminal, lines in a pipe."""
    if console.is_terminal:
        show(job, console)
    else:
        write_lines(job)


def run(folder: Path, document: Path, console: Console, follow: Follow = follow) -> int:
    """From a server to pictures; 0 if the model is good enough.

    Raises:
        DemoFailed: No model came of it.
    """
    began = time.monotonic()
    spec = read_job_file(document).spec
    with serving(folder / "server") as foedus:
        console.print(f"Control plane ready after {time.monotonic() - began:.1f} s.")
        job = foedus.submit(document)
        follow(job, console)
        model = job.refresh().model
        if model is None:
            conclude(job.last)
            raise DemoFailed(f"no model came of {job.id}; it is {job.last.phase}")
        onnx = foedus.models.pull(model, path=folder / "model.onnx")
        rounds = tuple(job.rounds())
    examples = set_aside(spec)
    labels = np.asarray(predict(onnx, examples.x).labels)
    accuracy = float(np.mean(labels == examples.y))
    draw_curve(rounds, folder / "learning-curve.png")
    draw_predictions(examples, labels, accuracy, folder / "predictions.png")
    console.print(
        f"onnxruntime reads {accuracy:.1%} of {len(examples)} digits right "
        "that no site trained on.",
        style="bold green" if accuracy >= REQUIRED_ACCURACY else "bold red",
    )
    for name in ("model.onnx", "learning-curve.png", "predictions.png"):
        console.print(f"  {os.path.relpath(folder / name)}", markup=False)
    console.print(f"Done in {time.monotonic() - began:.0f} s; nothing is left running.")
    return 0 if accuracy >= REQUIRED_ACCURACY else 1


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Foedus]:
    """A client of a control plane in ``folder`` that ends with the context, and its jobs with it.

    Raises:
        DemoFailed: It does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    environment = {key: text for key, text in os.environ.items() if not key.startswith("FOEDUS_")}
    environment |= {
        "FOEDUS_DATA": str(folder / "data"),
        "FOEDUS_PORT": "0",
        "FOEDUS_FIRST_TOKEN_FILE": str(token),
    }
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "control_plane"],
            env=environment,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: jobs are ended before their server
            text=True,
        )
    try:
        url = address_of(server, folder)
        with Foedus(url, token.read_text().strip(), patience=Patience(total_s=START_S)) as foedus:
            cancel_open_jobs(foedus)
            try:
                yield foedus
            except BaseException:
                with uninterrupted():
                    cancel_open_jobs(foedus)
                raise
    except FileNotFoundError as error:
        raise DemoFailed(f"{token} is gone; remove {folder} to start anew") from error
    finally:
        with uninterrupted():
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            if server.stdout is not None:
                server.stdout.close()


def address_of(server: subprocess.Popen[str], folder: Path) -> str:
    """Where the server listens, once it is ready.

    Raises:
        DemoFailed: It ended, or is not ready in time.
    """
    deadline = time.monotonic() + START_S
    for line in server.stdout or ():
        before, found, url = line.strip().rpartition(" listens at ")
        if found and before:
            break
    else:
        last = (folder / "server.log").read_text(errors="replace").splitlines()[-1:]
        raise DemoFailed(f"the control plane did not start: {''.join(last)}")
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready", timeout=5.0, trust_env=False).is_success:
                return url
        time.sleep(0.02)
    raise DemoFailed(f"the control plane was not ready after {START_S:g} s; see {folder}")


def cancel_open_jobs(foedus: Foedus) -> None:
    """End what still runs, also of a demo that was killed, and wait for it."""
    for job in foedus.jobs():
        if not job.phase.is_final:
            handle = foedus.job(job.id)
            with contextlib.suppress(FoedusError):  # it may have just ended by itself
                handle.cancel()
            for _ in handle.events(timeout_s=STOP_S):
                pass


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not stop the cleaning up, which has its own bounds."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def set_aside(spec: JobSpec) -> Examples:
    """The examples that were set aside before any were given to sites, divided out once more.

    Raises:
        DemoFailed: The job sets none aside.
    """
    if not isinstance(spec.data, Partitioned) or spec.data.central == 0:
        raise DemoFailed("the job sets no examples aside; give data.central a share")
    with tempfile.TemporaryDirectory(prefix="foedus-demo-") as scratch:
        prepare(spec.data, Path(scratch), Path(scratch) / "prepared")
        central = open_prepared(Path(scratch) / "prepared").central()
        return Examples(np.array(central.x), np.array(central.y))


def draw_curve(rounds: Sequence[Round], path: Path) -> None:
    """Loss and accuracy by round."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    numbers = [done.number for done in rounds]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), facecolor="white")
    left.plot(numbers, [done.loss for done in rounds], "o-", color=BLUE, markersize=4)
    left.set(title="training loss at the sites", xlabel="round", ylim=(0, None))
    measured = [(done.number, done.metrics["accuracy"]) for done in rounds if done.metrics]
    right.plot(*zip(*measured, strict=True), "o-", color=GREEN, markersize=4)
    right.axhline(REQUIRED_ACCURACY, color=INK, linewidth=0.8, linestyle=":")
    right.text(1, REQUIRED_ACCURACY + 0.005, f"{REQUIRED_ACCURACY:.0%}", color=INK, fontsize=8)
    right.set(title="accuracy on held-out digits", xlabel="round", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_predictions(examples: Examples, labels: np.ndarray, accuracy: float, path: Path) -> None:
    """The first digits, with what the model read; mistakes are marked."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = NUM_SHOWN // 2
    figure, grid = plt.subplots(2, columns, figsize=(8, 2.4), facecolor="white")
    side = round(examples.x.shape[-1] ** 0.5)
    shown = zip(grid.flat, examples.x, examples.y, labels, strict=False)
    for axes, pixels, truth, label in shown:
        axes.imshow(pixels.reshape(side, side), cmap="gray_r")
        is_right = label == truth
        text = f"{label}" if is_right else f"{label} (is {truth})"
        axes.set_title(text, color=INK if is_right else RED, fontsize=11, pad=3)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=RED if not is_right else "#d1d5db", linewidth=2 if not is_right else 1)
    figure.suptitle(
        f"What the model reads: the first {NUM_SHOWN} of {len(labels)} held-out digits "
        f"({accuracy:.1%} of all are right)",
        fontsize=10,
        color=INK,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
