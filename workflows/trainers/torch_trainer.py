"""Programs in PyTorch: the local epochs, with what a strategy asks of them.

Every call works on a fresh copy of the model as built, so that nothing of one site (buffers,
attributes, optimiser memory) reaches another, and seeds every generator, so that the same arguments
give the same bits whatever ran before.

A program may name the layers that are trained and travel. The others are its frozen base, which is
built under one seed whatever that of the job, so that every job of the program has the same one and
a model of one is a start for another. Running statistics of the base are used and not renewed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from strategies import ClientHalf, Parameters
from strategies.fednova import normaliser
from workflows.capabilities import ProgramFacts
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Adam, Local, Sgd
from workflows.trainers.border import (
    Program,
    Shape,
    arguments_of_build,
    delta_of,
    developer_code,
    parameters_of,
    refusal,
    require_metrics,
    require_number,
    seed_everything,
)
from workflows.trainers.descent import Descent, descent_of
from workflows.trainers.layers import layers_named
from workflows.trainers.scores import scores_of
from workflows.trainers.together import Stack, descend
from workflows.trainers.trainer import Measured, ProgramError, Trained

EVALUATION_BATCH: Final = 256
OPSET: Final = 17
FEDERATED: Final = (torch.float32, torch.float64)
BASE_SEED: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Hooks:
    """What a strategy asks of a program's own ``train``.

    Attributes:
        proximal_mu: Weight mu of the proximal term; 0 for none.
        origin: The global model's trainable parameters, by name.
        correction: To be added to each gradient, by name of the parameter.
        calls: One entry per call of ``penalty``, that is per local step.
    """

    proximal_mu: float
    origin: Mapping[str, torch.Tensor]
    correction: Mapping[str, torch.Tensor] = field(default_factory=dict)
    calls: list[None] = field(default_factory=list)

    def penalty(self, model: torch.nn.Module) -> torch.Tensor:
        """mu/2 * ||w - w_global||^2 + <correction, w>, to be added to the loss of each step.

        Call it once a step, and step by ``config.optimizer``: strategies count the steps by it.

        Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2;
        the linear term's gradient is the correction.
        """
        self.calls.append(None)
        total = torch.zeros(())
        if self.proximal_mu:
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    total = total + (weight - self.origin[name]).square().sum()
        penalty = self.proximal_mu / 2 * total
        for name, weight in model.named_parameters():
            if weight.requires_grad and name in self.correction:
                penalty = penalty + (self.correction[name] * weight).sum()
        return penalty


@dataclass(frozen=True, slots=True, eq=False)
class TrainConfig:
    """What a program's own ``train(model, data, config)`` is handed.

    Attributes:
        epochs: Passes over the site's data.
        batch_size: Examples in one step.
        lr: Learning rate.
        optimizer: The job's optimiser, with all its fields.
        hooks: What the strategy asks for; add ``hooks.penalty(model)`` to the loss.
        seed: Of this site and round; torch, numpy and random are seeded with it already.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: Sgd | Adam
    hooks: Hooks
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorExamples:
    """A site's training examples as a program's own ``train`` gets them."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)


class TorchTrainer:
    """A loaded PyTorch program."""

    def __init__(
        self, program: Program, config: Mapping[str, Any], seed: int, shape: Shape
    ) -> None:
        torch.set_num_threads(1)
        torch.set_deterministic_debug_mode("error")  # and not the call that imports the compiler
        self._program = program
        self._seed = seed
        self._shape = shape
        start = time.perf_counter()
        arguments = arguments_of_build(program, config, shape)
        start_model = self._built(arguments, seed)
        layers = _floating(start_model)
        if not layers:
            raise refusal("the model of build() has no floating-point parameters to train")
        travelling = layers_named(program.manifest.trainable, layers)
        self._frozen = frozenset(layers) - travelling
        self._initial = _federated(start_model, self._frozen)
        self._build: Callable[[], torch.nn.Module] = lambda: self._freeze(
            self._built(arguments, BASE_SEED if self._frozen else seed)
        )
        self._pristine = self._build() if self._frozen else start_model
        self._import_s = program.import_s + time.perf_counter() - start
        self._fresh = self._copied if _can_be_copied(self._pristine) else self._build
        if program.function("train") is None:
            program.require("loss")

    @property
    def facts(self) -> ProgramFacts:
        program = self._program
        return ProgramFacts(
            framework="torch",
            parameters=parameters_of(self._initial),
            frozen_bytes=sum(x.nbytes for x in self._base(self._pristine).values()),
            features=self._shape.features,
            metrics=tuple(program.manifest.metrics),
            own_train=program.function("train") is not None,
            uses_hooks=program.manifest.hooks,
            own_optimizer=program.function("optimizer") is not None,
            import_s=self._import_s,
            summary=program.manifest.summary,
        )

    def initial(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._initial.items()}

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        told = self._loss_before(params, examples, half)
        gradient = self._gradient(params, examples, local, half, seed)
        self._seed_all(seed)
        model = self._in_training(self._with(params))
        trainable = _trainable(model)
        if half.wants_gradients_only and (still := sorted(params.keys() - _parameters(model))):
            raise refusal(
                f"layer `{still[0]}` is a buffer that no gradient moves, and the job's strategy "
                "has no meaning for such; build the model without running statistics (GroupNorm)"
            )
        own = self._program.function("train")
        loss, steps = (
            self._own_loop(model, examples, local, half, seed)
            if own
            else self._our_loop(model, examples, local, half, seed)
        )
        self._require_base(model)
        return Trained(
            delta_of(params, _federated(model, self._frozen)),
            len(examples),
            loss,
            told | _of_the_loop(half, local, steps),
            gradient,
            trainable,
        )

    def train_together(
        self,
        params: Parameters,
        examples: Sequence[Examples],
        local: Local,
        half: ClientHalf,
        seeds: Sequence[int],
    ) -> list[Trained | ProgramError]:
        self._seed_all(seeds[0])
        model = self._in_training(self._with(params))
        if buffers := sorted(params.keys() - _parameters(model)):
            raise _unstackable(f"layer `{buffers[0]}` is a buffer that no gradient moves")
        if any(weight.dtype not in FEDERATED for weight in model.parameters()):
            raise _unstackable("not all of its parameters are floating-point numbers")
        stack = Stack(model, len(examples), self._program.require("loss"))
        try:
            with developer_code("loss() over a stack of sites", self._program.folder):
                losses, steps = descend(
                    stack, examples, local, half.proximal_mu, seeds, partial(_cut, local.batch_size)
                )
        except ProgramError as error:
            raise _unstackable(error.cause.detail, error.cause.evidence) from error
        self._require_base(model)
        told, trainable = _of_the_loop(half, local, steps), _trainable(model)
        trained: list[Trained | ProgramError] = []
        for k, loss in enumerate(losses):
            after = {name: x for name, x in stack.arrays(k).items() if name in params}
            try:
                delta = delta_of(params, after)
            except ProgramError as error:
                trained.append(error)
                continue
            trained.append(
                Trained(delta, len(examples[k]), loss, scalars=told, trainable=trainable)
            )
        return trained

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        require_metrics(self._program, metrics)
        self._seed_all(self._seed)
        model = self._with(params).eval()
        declared = [name for name in metrics if name in self._program.manifest.metrics]
        outputs, sums = [], dict.fromkeys(declared, 0.0)
        total_loss = 0.0
        with torch.no_grad():
            for batch in _batches(examples, np.arange(len(examples)), EVALUATION_BATCH):
                weight = len(batch[1]) / len(examples)
                if declared:
                    for name, value in self._measure(model, batch, declared).items():
                        sums[name] += weight * value
                if "loss" in metrics and "loss" not in declared:
                    loss = self._program.call("loss", model, batch)
                    total_loss += weight * require_number(loss, "loss")
                if set(metrics) - {"loss", *declared}:
                    outputs.append(self._forward(model, batch[0]))
        wanted = [name for name in metrics if name not in declared and name != "loss"]
        values = sums | (scores_of(np.concatenate(outputs), examples.y, wanted) if wanted else {})
        if "loss" in metrics and "loss" not in declared:
            values["loss"] = total_loss
        return Measured(values, len(examples))

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        from translation import TranslationError
        from translation.from_torch import to_onnx

        model = self._with(params).eval()
        try:
            outputs = to_onnx(model, samples, folder / "model.onnx", OPSET)
        except TranslationError as error:
            raise refusal(str(error), CauseCode.TRANSLATION_FAILED) from error
        np.savez(folder / "reference.npz", inputs=samples, outputs=outputs)

    def _loss_before(
        self, params: Parameters, examples: Examples, half: ClientHalf
    ) -> dict[str, float]:
        """The global model's mean loss on what the site trains on, if the strategy asks for it."""
        if "loss_before" not in half.scalars:
            return {}
        self._seed_all(self._seed)
        model, total = self._with(params).eval(), 0.0
        with torch.no_grad():
            for batch in _batches(examples, np.arange(len(examples)), EVALUATION_BATCH):
                loss = require_number(self._program.call("loss", model, batch), "loss")
                total += loss * len(batch[1])
        return {"loss_before": total / len(examples)}

    def _gradient(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> dict[str, np.ndarray]:
        """Gradient of the mean loss at ``params``, if the strategy asks for it."""
        if not half.wants_gradient:
            return {}
        self._seed_all(seed)
        model = self._in_training(self._with(params))
        for batch in _batches(examples, np.arange(len(examples)), local.batch_size):
            loss = self._loss(model, batch) * (len(batch[1]) / len(examples))
            with developer_code("the backward pass of loss()", self._program.folder):
                loss.backward()  # type: ignore[no-untyped-call]
        decay = local.optimizer.weight_decay  # a part of the gradient, as SGD takes it
        return {
            name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).numpy()
            + decay * weight.detach().numpy()
            for name, weight in model.named_parameters(remove_duplicate=False)
            if weight.requires_grad
        }

    def _our_loop(
        self,
        model: torch.nn.Module,
        examples: Examples,
        local: Local,
        half: ClientHalf,
        seed: int,
    ) -> tuple[float, int]:
        """The local epochs; gives the last one's mean loss, without penalties, and the steps."""
        optimizer = self._optimizer(model, local)
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        origin = [weight.detach().clone() for weight in trainable] if half.proximal_mu else []
        corrections = _corrections(model, half)
        shuffle = np.random.default_rng(seed)
        total, steps = 0.0, 0
        for _ in range(local.epochs):
            total = 0.0
            for batch in _batches(examples, shuffle.permutation(len(examples)), local.batch_size):
                optimizer.zero_grad()
                loss = self._loss(model, batch)
                with developer_code("the backward pass of loss()", self._program.folder):
                    loss.backward()  # type: ignore[no-untyped-call]
                for weight, correction in corrections:
                    if weight.grad is None:
                        weight.grad = correction.clone()
                    else:
                        weight.grad.add_(correction)
                for weight, start in zip(trainable, origin, strict=False):
                    if weight.grad is not None:  # the gradient of mu/2 * ||w - w_global||^2
                        weight.grad.add_(weight.detach() - start, alpha=half.proximal_mu)
                with developer_code("the step of the optimizer", self._program.folder):
                    optimizer.step()
                total += float(loss.detach()) * len(batch[1])
                steps += 1
        return total / len(examples), steps

    def _own_loop(
        self,
        model: torch.nn.Module,
        examples: Examples,
        local: Local,
        half: ClientHalf,
        seed: int,
    ) -> tuple[float | None, int]:
        origin = {
            name: weight.detach().clone()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        config = TrainConfig(
            epochs=local.epochs,
            batch_size=local.batch_size,
            lr=local.optimizer.lr,
            optimizer=local.optimizer,
            hooks=Hooks(half.proximal_mu, origin, _tensors_of(half.correction or {})),
            seed=seed,
        )
        data = TensorExamples(*_tensors(examples, slice(None)))
        loss = self._program.call("train", model, data, config)
        steps = len(config.hooks.calls)
        if half.counts_steps and not steps:
            raise refusal("train() never called config.hooks.penalty(model), as the strategy needs")
        return None if loss is None else require_number(loss, "what train() returns"), steps

    def _loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        loss = self._program.call("loss", model, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise refusal(f"loss() returned {what}; it must return one number as a tensor")
        if not loss.requires_grad:
            raise refusal("loss() does not depend on the model's parameters: nothing can be learnt")
        return loss

    def _optimizer(self, model: torch.nn.Module, local: Local) -> Descent:
        if self._program.function("optimizer"):
            optimizer = self._program.call("optimizer", model, local)
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise refusal(f"optimizer() returned {type(optimizer).__name__}, no optimizer")
            return optimizer
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        return descent_of(local.optimizer, weights)

    def _measure(
        self, model: torch.nn.Module, batch: Batch, declared: Sequence[str]
    ) -> dict[str, float]:
        values = self._program.call("evaluate", model, batch)
        if not isinstance(values, Mapping) or not set(declared) <= set(values):
            raise refusal(f"evaluate() must return a dict with {', '.join(declared)}")
        return {name: require_number(values[name], name) for name in declared}

    def _forward(self, model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
        with developer_code("the model's forward pass", self._program.folder):
            output = model(x)
        if not isinstance(output, torch.Tensor) or len(output) != len(x):
            raise refusal(
                "for a built-in metric the model must return one tensor with a row per example; "
                "measure it in your own evaluate()"
            )
        return output.detach().double().numpy()

    def _built(self, arguments: Mapping[str, Any], seed: int) -> torch.nn.Module:
        self._seed_all(seed)
        model = self._program.call("build", **arguments)
        if not isinstance(model, torch.nn.Module):
            raise refusal(f"build() returned {type(model).__name__}; it must return an nn.Module")
        return model

    def _freeze(self, model: torch.nn.Module) -> torch.nn.Module:
        """``model``, of which no gradient moves the base."""
        named = list(model.named_parameters(remove_duplicate=False))
        moving = {id(weight) for name, weight in named if name not in self._frozen}
        for _, weight in named:
            if id(weight) not in moving:
                weight.requires_grad_(False)
        return model

    def _in_training(self, model: torch.nn.Module) -> torch.nn.Module:
        """``model`` as it is trained: what of it renews statistics of the base does not."""
        model.train()
        for name, module in model.named_modules():
            if f"{name}.running_mean".lstrip(".") in self._frozen:
                module.eval()
        return model

    def _base(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Layers of ``model`` that do not travel, but for other names of some that do."""
        state = model.state_dict()
        moving = {x.data_ptr() for name, x in state.items() if name in self._initial}
        base = {name: state[name] for name in sorted(self._frozen & state.keys())}
        return {name: x for name, x in base.items() if x.data_ptr() not in moving}

    def _require_base(self, model: torch.nn.Module) -> None:
        """Raise unless the base is what it was before the training."""
        if not self._frozen:
            return
        after = self._base(model)
        for name, before in self._base(self._pristine).items():
            if name not in after or not torch.equal(after[name], before):
                raise refusal(
                    f"training changed layer `{name}`, which `trainable` in program.toml does not "
                    "name and which no site would send; name it, or leave it as it is (a module "
                    "with running statistics must stay in eval())"
                )

    def _copied(self) -> torch.nn.Module:
        return copy.deepcopy(self._pristine)

    def _with(self, params: Parameters) -> torch.nn.Module:
        """A fresh model that holds ``params``."""
        model = self._fresh()
        state = model.state_dict(keep_vars=False)
        with torch.no_grad():
            for name, array in params.items():
                state[name].copy_(torch.from_numpy(np.array(array)))
        return model

    @staticmethod
    def _seed_all(seed: int) -> None:
        # That of the processor alone: torch.manual_seed looks for others, for half a millisecond.
        torch.default_generator.manual_seed(seed)
        seed_everything(seed)


Batch = tuple[torch.Tensor, torch.Tensor]


def _batches(examples: Examples, order: np.ndarray, size: int) -> Iterator[Batch]:
    """Batches of ``size``; one example left over joins the last, as batch norm needs two."""
    for start, stop in _cut(size, len(order)):
        yield _tensors(examples, order[start:stop])


def _cut(size: int, num_examples: int) -> list[tuple[int, int]]:
    """Where the batches of ``_batches`` start and stop."""
    starts = list(range(0, num_examples, size))
    if size > 1 and len(starts) > 1 and num_examples % size == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_examples], strict=True))


def _unstackable(problem: str, evidence: str = "") -> ProgramError:
    return refusal(
        f"sites cannot be trained together (set runtime.vectorized to false): {problem}",
        evidence=evidence,
    )


def _tensors(examples: Examples, rows: np.ndarray | slice) -> Batch:
    """Copies of some rows, so that a program may write into them."""
    return (
        torch.from_numpy(np.array(examples.x[rows])),
        torch.from_numpy(np.array(examples.y[rows])),
    )


def _floating(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the floating-point arrays of a model, buffers included."""
    state = model.state_dict().items()
    return tuple(n for n, x in state if isinstance(x, torch.Tensor) and x.is_floating_point())


def _federated(model: torch.nn.Module, frozen: Collection[str]) -> dict[str, np.ndarray]:
    """Copies of the floating-point arrays of a model, but for those that are frozen.

    Raises:
        ProgramError: One is of a kind that cannot travel.
    """
    arrays, state = {}, model.state_dict()
    for name in _floating(model):
        if name in frozen:
            continue
        tensor = state[name]
        if tensor.dtype not in FEDERATED:
            raise refusal(f"layer `{name}` is {tensor.dtype}; federated layers must be float32")
        arrays[name] = tensor.detach().cpu().numpy().copy()
    return arrays


def _parameters(model: torch.nn.Module) -> frozenset[str]:
    """Names of what gradients could move."""
    return frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))


def _trainable(model: torch.nn.Module) -> frozenset[str]:
    """Names of what gradients do move."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, weight in named if weight.requires_grad)


def _corrections(
    model: torch.nn.Module, half: ClientHalf
) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Parameters, and what is added to the gradient of each."""
    given = _tensors_of(half.correction or {})
    named = model.named_parameters()
    return [(w, given[name].to(w.dtype)) for name, w in named if w.requires_grad and name in given]


def _tensors_of(arrays: Parameters) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}


def _of_the_loop(half: ClientHalf, local: Local, steps: int) -> dict[str, float]:
    """What the strategy asks to be told of the steps that were taken."""
    told: dict[str, float] = {}
    for name in half.scalars:
        match name:
            case "steps":
                told[name] = float(steps)
            case "rate":
                told[name] = local.optimizer.lr
            case "normaliser":
                momentum = getattr(local.optimizer, "momentum", 0.0)
                told[name] = normaliser(steps, momentum)
    return told


def _can_be_copied(model: torch.nn.Module) -> bool:
    """Whether the model can be copied; one with computed attributes (weight_norm) cannot."""
    try:
        copy.deepcopy(model)
    except Exception:  # noqa: BLE001 - border to the developer's model
        return False
    return True
