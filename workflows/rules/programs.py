"""A program, the model it builds, and the strategy that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from workflows.capabilities import Capabilities, ProgramFacts
from workflows.codecs import NoCodec
from workflows.job import FromModel, Inconsistent, JobSpec, Local, Sgd, Unsupported
from workflows.rules.named import kind_of, partitioned, program_of
from workflows.rules.sizes import MOST_KEPT_MB, most_model_bytes, size_bytes
from workflows.selection.weighted import Weighted

FRAMEWORK_MB: Final[Mapping[str, int]] = {
    "torch": 512,
    "sklearn": 256,
    "xgboost": 256,
    "analysis": 256,
}
"""Below it a worker has no room beside its framework (measured resident: 330, 180, 170 MiB), or
beside what reads the data, which an analysis needs as well."""


def require_program(spec: JobSpec, capabilities: Capabilities) -> None:
    """The program can do what the strategy wants of it, within the job's limits."""
    facts = program_of(spec, capabilities)
    reaches_in = spec.strategy.client_half().reaches_in
    if reaches_in and facts.own_train and not facts.uses_hooks:
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{kind_of(spec.strategy)} reaches into the local loop, but the program's own train "
            "does not say that it calls the hooks it is handed",
            "use fedavg, or call config.hooks in train and declare hooks = true in program.toml",
        )
    _require_trees(spec, facts)
    _require_local_optimizer(spec, facts)
    if facts.framework == "sklearn":
        _require_plain_sgd(spec)
    if spec.limits.memory_mb < (needed := FRAMEWORK_MB.get(facts.framework, 0)):
        raise Inconsistent(
            ("limits.memory_mb", "program"),
            f"workers for {facts.framework} need {needed} MiB before they hold anything",
            f"raise limits.memory_mb to {needed} or more",
        )
    _require_room_for_memories(spec, facts)
    _require_room_for_trees(spec, facts)
    size = size_bytes(facts) * models_in_answer(spec)
    if not spec.program.config and size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", "program"),
            f"a site's answer takes {size} bytes, more than {spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}",
        )


def models_in_answer(spec: JobSpec) -> int:
    """Arrays like the model that a site's answer holds: what it sends, and what it keeps."""
    return 1 + len(spec.strategy.vectors) + spec.has_memory


def _require_trees(spec: JobSpec, facts: ProgramFacts) -> None:
    """Trees are grown by what can grow them, and nothing else of the job reaches into them."""
    kind, grows = kind_of(spec.strategy), spec.strategy.model_kind == "trees"
    if grows != (facts.framework == "xgboost"):
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{kind} appends trees, and the program is in {facts.framework}"
            if grows
            else f"the program's model is an ensemble of trees, of which {kind} can make no mean",
            "use a program in xgboost, as digits-xgb" if grows else "use xgb-bagging or xgb-cyclic",
        )
    if not grows:
        return
    if spec.privacy:
        problem = f"{kind_of(spec.privacy[0])} is made for sums, and {kind} appends trees"
        raise Inconsistent(("privacy[0].kind", "strategy.kind"), problem, "leave privacy out")
    if not isinstance(spec.codec, NoCodec):
        problem = f"{kind_of(spec.codec)} is made for real numbers, and trees travel as text"
        raise Inconsistent(("codec.kind", "strategy.kind"), problem, "use the codec none")
    usual = Local()
    for field in ("optimizer", "batch_size"):
        if getattr(spec.local, field) != getattr(usual, field):
            raise Inconsistent(
                (f"local.{field}", "program"),
                "trees are grown on all examples at once, by the rate (eta) that build() sets",
                f"leave local.{field} out",
            )
    if isinstance(spec.cohort.selection, Weighted):
        raise Inconsistent(
            ("cohort.selection.kind", "strategy.kind"),
            f"{kind} has no mean in which a site that is drawn twice could count twice",
            "use the selection uniform",
        )


def _require_room_for_trees(spec: JobSpec, facts: ProgramFacts) -> None:
    """The last round's ensemble is within what a model may take, if every tree were full."""
    if not facts.growth_bytes or spec.program.config:
        return
    size = most_model_bytes(spec, facts, spec.rounds)
    if size > spec.limits.output_mb << 20:
        raise Inconsistent(
            ("limits.output_mb", "program"),
            f"after {spec.rounds} rounds the trees may take {size} bytes, more than "
            f"{spec.limits.output_mb} MiB",
            f"raise limits.output_mb to {-(-size >> 20)}, or ask for fewer rounds or smaller trees",
        )


def _require_room_for_memories(spec: JobSpec, facts: ProgramFacts) -> None:
    """What simulated sites keep fits into a round's checkpoint."""
    if not spec.has_memory or spec.program.config:
        return
    part, keeper = (
        ("codec", kind_of(spec.codec))
        if spec.codec.has_memory
        else (
            "strategy",
            kind_of(spec.strategy),
        )
    )
    sites, each = partitioned(spec).sites, size_bytes(facts)
    if sites * each > MOST_KEPT_MB << 20:
        raise Inconsistent(
            (f"{part}.kind", "data.sites"),
            f"every site keeps {each} bytes for {keeper}, {sites} sites more than "
            f"{MOST_KEPT_MB} MiB",
            f"ask for at most {max(1, (MOST_KEPT_MB << 20) // each)} sites, or use another {part}",
        )


def _require_local_optimizer(spec: JobSpec, facts: ProgramFacts) -> None:
    """The strategy's algorithm holds for what takes the local steps."""
    wanted, optimizer, kind = (
        spec.strategy.local_optimizers,
        spec.local.optimizer,
        kind_of(spec.strategy),
    )
    if wanted == "any":
        return
    if facts.own_optimizer:
        raise Inconsistent(
            ("strategy.kind", "program"),
            f"{kind} is made for SGD, and the program brings an optimizer of its own",
            "leave optimizer() out of the program, or use another strategy",
        )
    if not isinstance(optimizer, Sgd) or (optimizer.momentum and wanted == "plain-sgd"):
        plain = " without momentum" if wanted == "plain-sgd" else ""
        raise Inconsistent(
            ("local.optimizer", "strategy.kind"),
            f"{kind} is made for SGD{plain}",
            "use {kind: sgd, lr: ...}",
        )


def _require_plain_sgd(spec: JobSpec) -> None:
    """The loop is scikit-learn's own, and it knows no more than a rate."""
    local, usual = spec.local, Local()
    optimizer = local.optimizer
    if not isinstance(optimizer, Sgd) or optimizer.momentum or optimizer.weight_decay:
        raise Inconsistent(
            ("local.optimizer", "program"),
            "scikit-learn trains by plain SGD",
            "use {kind: sgd, lr: ...}, and set any decay as `alpha` of the estimator",
        )
    if local.batch_size != usual.batch_size:
        problem = "scikit-learn takes one example after another, or all at once"
        raise Inconsistent(("local.batch_size", "program"), problem, "leave local.batch_size out")


def require_init(spec: JobSpec, capabilities: Capabilities) -> None:
    """The model to start from is known, and one of this program's."""
    if not isinstance(spec.init, FromModel):
        return
    given = capabilities.models.get(spec.init.digest)
    if given is None:
        problem = "no model with this digest is known here"
        raise Unsupported(("init.digest",), problem, "copy the digest of a model you may see")
    wanted = program_of(spec, capabilities).parameters
    if spec.strategy.model_kind == "trees":  # whose length grows; the run looks into them
        given, wanted = (
            tuple(msgspec.structs.replace(p, shape=(0,)) for p in parameters)
            for parameters in (given, wanted)
        )
    differing = set(given) ^ set(wanted)
    if differing and not spec.program.config:
        names = ", ".join(sorted({parameter.name for parameter in differing})[:5])
        raise Inconsistent(
            ("init.digest", "program"),
            f"name, shape or dtype differ between the model's and the program's {names}",
            "start from a model of the same program",
        )
