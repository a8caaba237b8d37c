"""The border to the developer's code: importing it, calling it, and telling what it did wrong.

Everything a program raises becomes a ``ProgramError`` here, with the frames of the developer's own
files as evidence. ``SystemExit`` and ``MemoryError`` pass: the worker has its own words for them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from strategies import Parameters
from workflows.capabilities import Parameter
from workflows.causes import Cause, CauseCode
from workflows.metrics import HIGHER_IS_BETTER, LOSS
from workflows.program import ManifestInvalid, ProgramManifest, read_manifest
from workflows.trainers.trainer import ProgramError

EVIDENCE_BYTES: Final = 4096
DETAIL_CHARS: Final = 500
COMMON_PACKAGES: Final = (
    "numpy",
    "torch",
    "torchvision",
    "sklearn",
    "xgboost",
    "scipy",
    "pandas",
    "safetensors",
)
MODULE: Final = "program"


@dataclass(frozen=True, slots=True)
class Program:
    """A developer's program, imported.

    Attributes:
        folder: Where its files are.
        manifest: What it declares.
        module: Its ``program.py``.
        import_s: Seconds that importing it took.
    """

    folder: Path
    manifest: ProgramManifest
    module: ModuleType
    import_s: float

    def function(self, name: str) -> Callable[..., Any] | None:
        """Its function ``name``; None if it has none."""
        function = getattr(self.module, name, None)
        return function if callable(function) else None

    def require(self, name: str) -> Callable[..., Any]:
        """Its function ``name``.

        Raises:
            ProgramError: It has none.
        """
        function = self.function(name)
        if function is None:
            raise refusal(f"program.py has no function `{name}`; define it")
        return function

    def call(self, name: str, /, *given: object, **named: object) -> Any:  # noqa: ANN401 - its own
        """Call its function ``name``.

        Raises:
            ProgramError: It has none, or it raised.
        """
        function = self.require(name)
        with developer_code(f"{name}()", self.folder):
            return function(*given, **named)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model must fit.

    Attributes:
        features: Shape of one example; empty where it is not known.
        classes: Number of classes; 0 for real-valued targets or where it is not known.
    """

    features: tuple[int, ...] = ()
    classes: int = 0


def refusal(
    detail: str, code: CauseCode = CauseCode.PROGRAM_RAISED, evidence: str = ""
) -> ProgramError:
    """The error that says what a program did wrong, kept to a length that fits an event."""
    return ProgramError(Cause(code=code, detail=detail[:DETAIL_CHARS], evidence=evidence))


@contextlib.contextmanager
def developer_code(doing: str, folder: Path) -> Iterator[None]:
    """Turn what the developer's code raises into a ``ProgramError``.

    Args:
        doing: What is called, for the message.
        folder: Where the developer's files are; only their frames are shown.

    Raises:
        ProgramError: The code raised.
    """
    try:
        yield
    except (ProgramError, MemoryError):
        raise
    except Exception as error:
        detail = f"{doing} raised {type(error).__name__}: {error}"
        raise refusal(detail, evidence=evidence_of(error, folder)) from error


def evidence_of(error: BaseException, folder: Path) -> str:
    """The traceback with the frames of files in ``folder`` alone, its end if it is too long."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    for frame in own:
        frame.filename = Path(frame.filename).relative_to(folder).as_posix()
    lines = [*traceback.format_list(own), *traceback.format_exception_only(error)]
    return "".join(lines).encode(errors="replace")[-EVIDENCE_BYTES:].decode(errors="ignore")


def import_program(folder: Path) -> Program:
    """Import the program in ``folder``, in place of any that was imported before.

    Raises:
        ProgramError: It cannot be imported.
    """
    start = time.perf_counter()
    folder = folder.resolve()
    try:
        manifest = read_manifest(folder)
    except ManifestInvalid as error:
        raise refusal(str(error), CauseCode.PROGRAM_IMPORT_FAILED) from error
    for package in manifest.dependencies:
        if not _is_installed(package):
            raise _missing(package, "program.toml names it under `dependencies`")
    _forget_previous()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location(MODULE, folder / "program.py")
    if spec is None or spec.loader is None:
        raise refusal("program.py is no Python file", CauseCode.PROGRAM_IMPORT_FAILED)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    with developer_code("importing program.py", folder):
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as error:
            raise _missing(error.name or "?", evidence_of(error, folder)) from error
        except ImportError as error:
            raise refusal(
                f"importing program.py raised {error}",
                CauseCode.PROGRAM_IMPORT_FAILED,
                evidence_of(error, folder),
            ) from error
    return Program(folder, manifest, module, time.perf_counter() - start)


def _forget_previous() -> None:
    """Unload the program imported before, and the modules that came with it."""
    previous = sys.modules.pop(MODULE, None)
    if previous is None or previous.__file__ is None:
        return
    folder = Path(previous.__file__).parent
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(package.partition(".")[0]) is not None
    return True


def _missing(package: str, evidence: str) -> ProgramError:
    there = [name for name in COMMON_PACKAGES if _is_installed(name)]
    return refusal(
        f"the package `{package}` is not in the runtime's environment; there are "
        f"{', '.join(there)} and the standard library, or put the module into the bundle",
        CauseCode.PROGRAM_IMPORT_FAILED,
        evidence,
    )


def arguments_of_build(program: Program, config: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """What ``build`` is called with: the job's config, and the data's shape where it asks for it.

    ``features`` and ``classes`` are handed over if its signature names them and config does not.

    Raises:
        ProgramError: It does not take the config.
    """
    build = program.require("build")
    signature = inspect.signature(build)
    known = {"features": shape.features, "classes": shape.classes}
    offered = {name: value for name, value in known.items() if name in signature.parameters}
    arguments = offered | dict(config)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise refusal(f"program.config does not fit build(): {error}; it takes {takes}") from error
    return arguments


def seed_everything(seed: int) -> None:
    """Seed the generators that a developer's code may draw from without being handed one."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def delta_of(before: Parameters, after: Parameters) -> dict[str, np.ndarray]:
    """``after`` minus ``before``, after checking that it is an update at all.

    Raises:
        ProgramError: Layers or shapes are not those of before, or a value is not finite.
    """
    expected = {name: array.shape for name, array in before.items()}
    found = {name: array.shape for name, array in after.items()}
    if found != expected:
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise refusal(
            f"after training, layer `{name}` has the shape {found.get(name)}, but build() made it "
            f"{expected.get(name)}; train() must keep the layers as they are",
            CauseCode.UPDATE_INCOMPATIBLE,
        )
    delta = {name: after[name] - array for name, array in before.items()}
    for name, array in delta.items():
        if not np.isfinite(array).all():
            raise refusal(
                f"after training, layer `{name}` holds NaN or infinity", CauseCode.UPDATE_NOT_FINITE
            )
    return delta


def parameters_of(arrays: Parameters) -> tuple[Parameter, ...]:
    """Names, shapes and dtypes of federated arrays."""
    return tuple(
        Parameter(name=name, shape=array.shape, dtype=array.dtype.name)
        for name, array in arrays.items()
    )


def require_metrics(program: Program, metrics: Sequence[str]) -> None:
    """Raise unless each metric is built in or declared.

    Raises:
        ProgramError: One is not.
    """
    declared, built_in = program.manifest.metrics, sorted((*HIGHER_IS_BETTER, LOSS))
    for name in metrics:
        if name not in built_in and name not in declared:
            known = ", ".join([*built_in, *declared])
            raise refusal(f"metric `{name}` is unknown; there are {known}")


def metrics_of_program(
    program: Program, model: object, batch: tuple[np.ndarray, np.ndarray], declared: Sequence[str]
) -> dict[str, float]:
    """What the program's own ``evaluate`` says of ``model`` on arrays; not asked for nothing.

    Raises:
        ProgramError: It raised, or leaves out a metric that it declares.
    """
    if not declared:
        return {}
    values = program.call("evaluate", model, batch)
    if not isinstance(values, Mapping) or not set(declared) <= set(values):
        raise refusal(f"evaluate() must return a dict with {', '.join(declared)}")
    return {name: require_number(values[name], name) for name in declared}


def require_number(value: object, name: str) -> float:
    """``value`` as a float.

    Raises:
        ProgramError: It is none, or NaN or infinite.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise refusal(f"`{name}` is {type(value).__name__}, not a number") from error
    if not np.isfinite(number):
        raise refusal(f"`{name}` is {number}", CauseCode.UPDATE_NOT_FINITE)
    return number
