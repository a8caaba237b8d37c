"""Trying a program on two toy sites before anything is submitted, and saying what is wrong.

The program runs as it will run later: unpacked from its archive, in a confined worker process,
through the same tasks. (What an upload must pass is less: ``workflows.steps.probe``.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from strategies import FedAvg
from strategies.fedprox import FedProx
from strategies.xgb_bagging import XgbBagging
from translation import TranslationError
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause
from workflows.job import Limits, Local, Partitioned
from workflows.program import BundleError, ProgramManifest, pack, read_manifest, unpack
from workflows.tasks import Export, Initial, Measure, Open, OpenData, Prepare, SiteFailure, Train
from workflows.workers import WorkerPool

TOY_EXAMPLES: Final = 96
TOY_SEED: Final = 7
LOCAL: Final = Local(epochs=2, batch_size=8)
ATOL: Final = 1e-4
RTOL: Final = 1e-3
SITES: Final = ("site-0001", "site-0002")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        about: What, in a word or two.
        ok: Whether it is as it must be.
        found: What was found.
        mend: What to do about it; empty where there is nothing to do.
        evidence: The developer's frames of a traceback, if something was raised.
    """

    about: str
    ok: bool
    found: str
    mend: str = ""
    evidence: str = ""


class Report(msgspec.Struct, frozen=True):
    """All findings, in the order in which they were made; the first that is not ok is the last.

    Attributes:
        findings: What was found.
        facts: What the program is; None if it does not load.
    """

    findings: tuple[Finding, ...]
    facts: ProgramFacts | None = None

    @property
    def ok(self) -> bool:
        """Whether the program can be submitted."""
        return all(finding.ok for finding in self.findings)


class _Stop(Exception):
    """What follows cannot be tried."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def check_program(
    folder: Path,
    scratch: Path,
    config: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> Report:
    """Pack, load, train, measure and export the program in ``folder``; never raises for its faults.

    Args:
        folder: The developer's folder; nothing is written there.
        scratch: A folder to work in, new or empty.
        config: Handed to ``build``.
        limits: What the program may take.
    """
    scratch = scratch.resolve()
    findings: list[Finding] = []
    facts: ProgramFacts | None = None
    try:
        program = scratch / "program"
        manifest = _packed(folder, scratch, program)
        size = sum(path.stat().st_size for path in program.rglob("*") if path.is_file())
        findings.append(Finding("bundle", True, f"`{manifest.name}` packs to {size:,} bytes"))
        _require_shape(manifest)
        with _pool(program, scratch / "work", limits) as pool:
            trial = _Trial(pool, manifest, program, scratch, config or {})
            facts = trial.load()
            findings.append(Finding("model", True, _in_words(facts)))
            findings.extend(trial.rest(facts))
    except _Stop as stop:
        findings.append(stop.finding)
    return Report(tuple(findings), facts)


@contextlib.contextmanager
def _pool(program: Path, scratch: Path, limits: Limits) -> Iterator[WorkerPool[Any]]:
    """One worker, whose output goes to a file in ``scratch``."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "log").open("ab") as log:
        workers: WorkerPool[Any] = WorkerPool(
            num_workers=1, limits=limits, folder=scratch, readable=(program,), log=log
        )
        with workers as pool:
            yield pool


def _packed(folder: Path, scratch: Path, program: Path) -> ProgramManifest:
    archive = scratch / "bundle.tar"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        read_manifest(folder)
        pack(folder, archive)
        return unpack(archive, program)
    except BundleError as error:
        found, _, mend = str(error).rpartition("; ")
        raise _Stop(Finding("bundle", False, found or mend, mend if found else "")) from error


def _require_shape(manifest: ProgramManifest) -> None:
    if not manifest.example_features:
        found = "program.toml does not say what an example looks like, so nothing can be tried"
        mend = "state `example_features = [64]` (your shape) and `classes` in program.toml"
        raise _Stop(Finding("toy data", False, found, mend))


def _in_words(facts: ProgramFacts) -> str:
    count = sum(int(np.prod(p.shape, dtype=np.int64)) for p in facts.parameters)
    if facts.growth_bytes:
        return (
            f"{facts.framework} ensemble that a local epoch lengthens by at most "
            f"{facts.growth_bytes:,} bytes, built in {facts.import_s:.2f} s"
        )
    base = f" that travel, on a frozen base of {facts.frozen_bytes:,} bytes"
    return (
        f"{facts.framework} model with {count:,} parameters in {len(facts.parameters)} arrays"
        f"{base if facts.frozen_bytes else ''}, built in {facts.import_s:.2f} s"
    )


class _Trial:
    """One program in one worker, tried step by step."""

    def __init__(
        self,
        pool: WorkerPool[Any],
        manifest: ProgramManifest,
        program: Path,
        scratch: Path,
        config: Mapping[str, Any],
    ) -> None:
        self._pool = pool
        self._manifest = manifest
        self._program = program
        self._work = scratch / "work"
        self._config = config
        self._strategy = XgbBagging() if manifest.framework == "xgboost" else FedAvg()
        self._metrics = ("accuracy" if manifest.classes else "mse", *manifest.metrics)

    def load(self) -> ProgramFacts:
        manifest = self._manifest
        task = Open(
            program=str(self._program),
            config=self._config,
            seed=TOY_SEED,
            features=manifest.example_features,
            classes=manifest.classes,
        )
        facts: ProgramFacts = self._ask("model", task).answer.facts
        return facts

    def rest(self, facts: ProgramFacts) -> Iterator[Finding]:
        """Everything that needs data."""
        self._lay_toy_data()
        params = self._ask("model", Initial()).arrays
        first = [self._train(site, params, 0.0) for site in SITES]
        yield Finding("training", True, self._losses(first))
        yield self._repeatable(params, first[0].arrays)
        if facts.own_train and facts.framework == "torch":
            yield self._hooked(params, first[0].arrays)
        strategy = self._strategy
        trained = strategy.step(strategy.init(params), first[0].arrays).params
        yield self._measured(trained)
        yield self._exported(trained)

    def _lay_toy_data(self) -> None:
        rng = np.random.default_rng(TOY_SEED)
        x = rng.random((TOY_EXAMPLES, *self._manifest.example_features), np.float32)
        classes = self._manifest.classes
        y = np.arange(TOY_EXAMPLES) % classes if classes else x.reshape(len(x), -1).mean(axis=1)
        inputs = self._work / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        np.savez(inputs / "dataset.npz", x=x, y=y)
        data = Partitioned(dataset="toy", sites=len(SITES), holdout=0.25)
        where = str(self._work / "data")
        self._ask("toy data", Prepare(data=data, inputs=str(inputs), folder=where))
        self._ask("toy data", OpenData(folder=where))

    def _train(self, site: str, params: Mapping[str, np.ndarray], mu: float) -> Any:  # noqa: ANN401
        task = Train(
            site=site,
            model=self._pool.broadcast(params),
            local=LOCAL,
            strategy=FedProx(mu=mu) if mu else self._strategy,
            seed=TOY_SEED,
        )
        return self._ask("training", task)

    @staticmethod
    def _losses(replies: list[Any]) -> str:
        told = [reply.answer.loss for reply in replies]
        if None in told:
            return "two toy sites trained; the program tells no loss"
        return "two toy sites trained, with losses of " + " and ".join(f"{v:.3g}" for v in told)

    def _repeatable(
        self, params: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]
    ) -> Finding:
        again = self._train(SITES[0], params, 0.0).arrays
        if all(np.array_equal(again[name], array) for name, array in before.items()):
            return Finding("repeatable", True, "the same seed gives the same update")
        raise _Stop(
            Finding(
                "repeatable",
                False,
                "training the same site twice from one seed gave two different updates",
                "draw randomness from torch, numpy or random without seeding them yourself, and "
                "keep no state between calls (globals, files, the clock)",
            )
        )

    def _hooked(
        self, params: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]
    ) -> Finding:
        """Whether a ``train`` of its own does what it declares about hooks."""
        if not self._manifest.hooks:
            return Finding(
                "hooks",
                True,
                "train() is the program's own and declares no hooks, so strategies that reach into "
                "the loop (fedprox, scaffold, feddyn, fednova) will be refused",
                "to allow them, add config.hooks.penalty(model) to the loss and set `hooks = true`",
            )
        pulled = self._train(SITES[0], params, 10.0).arrays
        if any(not np.array_equal(pulled[name], array) for name, array in before.items()):
            return Finding("hooks", True, "train() applies config.hooks.penalty(model)")
        raise _Stop(
            Finding(
                "hooks",
                False,
                "program.toml says `hooks = true`, but the penalty does not change the update",
                "add config.hooks.penalty(model) to the loss of every batch in train()",
            )
        )

    def _measured(self, params: Mapping[str, np.ndarray]) -> Finding:
        task = Measure(
            site=SITES[0], model=self._pool.broadcast(params), metrics=tuple(self._metrics)
        )
        values = self._ask("evaluation", task).answer.values
        said = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        return Finding("evaluation", True, f"on held-out toy data: {said}")

    def _exported(self, params: Mapping[str, np.ndarray]) -> Finding:
        from translation.parity import check_parity

        folder = self._work / "export"
        mend = "look for randomness or Python branches in forward(), or set output.onnx to []"
        task = Export(model=self._pool.broadcast(params), num_samples=16, folder=str(folder))
        self._ask("onnx", task)
        try:
            with np.load(folder / "reference.npz", allow_pickle=False) as reference:
                parity = check_parity(
                    folder / "model.onnx",
                    reference["inputs"],
                    reference["outputs"],
                    atol=ATOL,
                    rtol=RTOL,
                )
        except TranslationError as error:
            raise _Stop(Finding("onnx", False, str(error), mend)) from error
        difference = parity.max_abs_difference
        return Finding("onnx", True, f"the ONNX form answers alike, to within {difference:.1e}")

    def _ask(self, about: str, task: Any) -> Any:  # noqa: ANN401 - a union of tasks
        try:
            return self._pool.call(task).result()
        except SiteFailure as failure:
            raise _Stop(_failure(about, failure.cause)) from failure


def _failure(about: str, cause: Cause) -> Finding:
    return Finding(
        about, False, f"{cause.code}: {cause.detail}", cause.explanation.hint, cause.evidence
    )
