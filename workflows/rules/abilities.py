"""What the runtime, its mechanisms, the translator and the engine of this platform can do."""

from __future__ import annotations

from math import prod

from strategies.kept import KeptFold
from workflows.capabilities import Capabilities
from workflows.codecs import NoCodec
from workflows.job import Allotment, AtSites, Inconsistent, JobSpec, Resources, Unsupported
from workflows.rules.named import kind_of, one_of, program_of, runtime_of


def require_runtime(spec: JobSpec, capabilities: Capabilities) -> None:
    """The runtime moves such data in this mode, and speaks the codec."""
    runtime = runtime_of(spec, capabilities)
    mode = spec.runtime.mode
    if mode not in runtime.modes:
        problem = f"runtime {spec.runtime.kind} has no mode {mode} yet"
        raise Unsupported(("runtime.mode",), problem, f"use {one_of(runtime.modes)}")
    if isinstance(spec.data, AtSites):
        problem = "data of real sites cannot be reached from here yet"
        raise Unsupported(("data.kind",), problem, "use partitioned with a data set of your own")
    if mode == "sites":
        problem = "partitioned data is for simulated sites"
        raise Inconsistent(("data.kind", "runtime.mode"), problem, "use mode simulation")
    if spec.runtime.shards > 1 and not runtime.spreads:
        able = [kind for kind, one in capabilities.runtimes.items() if one.spreads]
        problem = f"runtime {spec.runtime.kind} simulates its sites on one machine"
        raise Unsupported(("runtime.shards", "runtime.kind"), problem, f"use {one_of(able)}")
    if (codec := kind_of(spec.codec)) not in runtime.codecs:
        problem = f"runtime {spec.runtime.kind} does not speak {codec}"
        raise Unsupported(("codec.kind",), problem, f"use {one_of(runtime.codecs)}")
    if spec.strategy.has_memory and not isinstance(spec.codec, NoCodec):
        raise Inconsistent(
            ("codec.kind", "strategy.kind"),
            f"what a site keeps under {kind_of(spec.strategy)} must be what the server was sent, "
            f"and {codec} changes that on its way",
            "use the codec none, or a strategy whose sites keep nothing",
        )
    if spec.codec.has_memory and isinstance(spec.strategy, KeptFold):
        raise Inconsistent(
            ("codec.kind", "strategy.kind"),
            f"what a site does not send by {codec} is made up for where updates are added up, and "
            f"{kind_of(spec.strategy)} does not add them up",
            "use another codec, or a strategy that folds a sum, as fedavg",
        )


def require_privacy(spec: JobSpec, capabilities: Capabilities) -> None:
    """Every mechanism is enforced, once, and nothing is claimed that nothing checks."""
    runtime = runtime_of(spec, capabilities)
    kinds = [kind_of(mechanism) for mechanism in spec.privacy]
    for index, kind in enumerate(kinds):
        field = f"privacy[{index}].kind"
        if kind not in runtime.mechanisms:
            problem = f"runtime {spec.runtime.kind} does not enforce {kind} yet"
            mend = f"use {one_of(runtime.mechanisms)}" if runtime.mechanisms else "leave it out"
            raise Unsupported((field, "runtime.kind"), problem, mend)
        if kind in kinds[:index]:
            raise Inconsistent((field,), f"{kind} is asked for twice", "leave one out")
    if spec.protect is not None:
        problem = "nothing here can check yet whether mechanisms protect that"
        raise Unsupported(("protect",), problem, "leave it out, so that nothing is claimed")


def require_strategy(spec: JobSpec, capabilities: Capabilities) -> None:
    """The runtime folds by the strategy."""
    runtime = runtime_of(spec, capabilities)
    kind = kind_of(spec.strategy)
    offered = capabilities.strategies if "*" in runtime.strategies else runtime.strategies
    if kind not in offered:
        problem = f"runtime {spec.runtime.kind} does not fold {kind}"
        raise Unsupported(("strategy.kind", "runtime.kind"), problem, f"use {one_of(offered)}")


def require_vectorizable(spec: JobSpec, capabilities: Capabilities) -> None:
    """Sites are trained together where the loop is ours and nothing in it is a site's own."""
    if not spec.runtime.vectorized:
        return
    facts, strategy = program_of(spec, capabilities), spec.strategy
    half, here = strategy.client_half(), "runtime.vectorized"
    if not runtime_of(spec, capabilities).vectorizes:
        able = [kind for kind, one in capabilities.runtimes.items() if one.vectorizes]
        problem = f"runtime {spec.runtime.kind} trains one site after the other"
        raise Unsupported((here, "runtime.kind"), problem, f"use {one_of(able)}")
    misfit: tuple[str, str] | None = None
    if facts.framework != "torch":
        misfit = "program", f"{facts.framework} trains one site after the other"
    elif facts.own_train or facts.own_optimizer:
        own = "train" if facts.own_train else "optimizer"
        misfit = "program", f"the program brings its own {own}, which is made for one site"
    elif facts.frozen_bytes:
        misfit = "program", "the program has a frozen base, which is made for one site"
    elif strategy.buffered:
        misfit = "strategy.kind", f"{kind_of(strategy)} takes one answer after the other"
    elif spec.has_memory:
        part = "codec" if spec.codec.has_memory else "strategy"
        misfit = f"{part}.kind", f"sites keep something under {kind_of(getattr(spec, part))}"
    elif not strategy.is_sum:
        misfit = "strategy.kind", f"{kind_of(strategy)} needs each site's own update"
    elif half.wants_gradient or "loss_before" in half.scalars:
        misfit = (
            "strategy.kind",
            f"{kind_of(strategy)} has a site look at the model before training",
        )
    if misfit:
        field, problem = misfit
        raise Inconsistent((here, field), problem, "set runtime.vectorized to false")
    entries = sum(prod(parameter.shape) for parameter in facts.parameters)
    size = 8 * entries * (1 + len(strategy.vectors))
    if not spec.program.config and size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", here),
            f"the sum of a group takes {size} bytes, more than {spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}",
        )


def require_output(spec: JobSpec, capabilities: Capabilities) -> None:
    """Every variant can be made, and is asked for once."""
    variants = spec.output.onnx
    for index, variant in enumerate(variants):
        path = f"output.onnx[{index}]"
        if variant not in capabilities.onnx:
            problem = f"the ONNX variant {variant} cannot be made yet"
            raise Unsupported((path,), problem, f"use {one_of(capabilities.onnx)}")
        if variant in variants[:index]:
            raise Inconsistent((path,), f"{variant} is asked for twice", "leave one out")


def require_resources(spec: JobSpec, capabilities: Capabilities) -> None:
    """The engine reserves what is asked for."""
    engine = capabilities.engine
    for part in ("server", "site"):
        asked: Allotment = getattr(spec.resources, part)
        usual: Allotment = getattr(Resources(), part)
        for field in asked.__struct_fields__:
            can = engine.gpus if field == "gpu" else engine.reserves
            if not can and getattr(asked, field) != getattr(usual, field):
                raise Unsupported(
                    (f"resources.{part}.{field}",),
                    "the engine here reserves nothing, and has no GPU to give"
                    if field == "gpu"
                    else "the engine here reserves nothing",
                    f"leave it out ({getattr(usual, field):g}); limits bound what is used",
                )
