"""The examples that sites train on, and those that are held out for measuring."""

from __future__ import annotations

from sharing.object_store import is_digest
from strategies.tally import Tally
from workflows.capabilities import Capabilities, DatasetFacts
from workflows.data.virtual import Virtual
from workflows.job import DEFAULT_LABEL, Inconsistent, JobSpec, Unsupported
from workflows.metrics import HIGHER_IS_BETTER, OF_CLASSES
from workflows.rules.named import dataset_of, kind_of, one_of, partitioned, program_of
from workflows.rules.sizes import fewest_per_site, most_held_out, num_training


def require_data(spec: JobSpec, capabilities: Capabilities) -> None:
    """The program takes such examples, and there are enough for all sites."""
    data = partitioned(spec)
    facts = dataset_of(spec, capabilities)
    program = program_of(spec, capabilities)
    if data.label != DEFAULT_LABEL and not is_digest(data.dataset):
        problem = f"the bundled set {data.dataset} has labels of its own"
        raise Inconsistent(("data.label", "data.dataset"), problem, "leave data.label out")
    if program.features and program.features != facts.features:
        raise Inconsistent(
            ("program", "data.dataset"),
            f"the program takes examples shaped {list(program.features)}, {data.dataset} has "
            f"{list(facts.features)}",
            "choose a program and a data set that fit",
        )
    each = fewest_per_site(data)
    training = num_training(data, facts)
    is_virtual = isinstance(data.partitioner, Virtual)
    if is_virtual and not training:
        problem = "no examples are left for the sites"
        raise Inconsistent(("data.central", "data.dataset"), problem, "lower data.central")
    if not is_virtual and data.sites * each > training:
        raise Inconsistent(
            ("data.sites", "data.dataset"),
            f"{data.sites} sites need at least {data.sites * each} examples, {training} are there",
            f"ask for at most {training // each} sites",
        )
    most = data.partitioner.examples if isinstance(data.partitioner, Virtual) else training
    if spec.ring.max_weight < most and not isinstance(spec.strategy, Tally):
        raise Inconsistent(
            ("ring.max_weight", "data.partitioner.examples" if is_virtual else "data.dataset"),
            f"one site may hold {most} examples, more than the weight {spec.ring.max_weight}",
            f"raise ring.max_weight to {most}",
        )


def require_root(spec: JobSpec, capabilities: Capabilities) -> None:
    """The server has data of its own where the strategy wants it to train, and for that alone."""
    if not spec.strategy.wants_root:
        return
    data, kind = partitioned(spec), kind_of(spec.strategy)
    facts = dataset_of(spec, capabilities)
    central = facts.num_examples - num_training(data, facts)
    if not central:
        raise Inconsistent(
            ("data.central", "strategy.kind"),
            f"{kind} has the server train on the central part, and there is none",
            "set data.central above 0, as 0.1",
        )
    if spec.evaluate.metrics and spec.evaluate.where == "central":
        raise Inconsistent(
            ("evaluate.where", "strategy.kind"),
            f"{kind} has the server train on the central part, so a measure on it says nothing",
            "set evaluate.where to sites",
        )
    if spec.ring.max_weight < central:
        raise Inconsistent(
            ("ring.max_weight", "data.central"),
            f"the central part holds {central} examples, more than the weight "
            f"{spec.ring.max_weight}",
            f"raise ring.max_weight to {central}",
        )


def require_evaluation(spec: JobSpec, capabilities: Capabilities) -> None:
    """Every metric can be measured, on enough of what is held out."""
    metrics, data = spec.evaluate.metrics, partitioned(spec)
    if not metrics:
        if spec.evaluate.select == "best":
            problem = "without a metric there is no best round"
            raise Inconsistent(("evaluate.select", "evaluate.metrics"), problem, "use last")
        return
    field, share = (
        ("data.central", data.central)
        if spec.evaluate.where == "central"
        else ("data.holdout", data.holdout)
    )
    if spec.evaluate.where == "sites" and isinstance(data.partitioner, Virtual):
        raise Inconsistent(
            ("evaluate.where", "data.partitioner.kind"),
            "virtual sites draw from the same data, so others train on what one holds out",
            "use central, with data.central above 0",
        )
    if share == 0:
        problem = f"nothing is held out for evaluation at {spec.evaluate.where}"
        raise Inconsistent((field, "evaluate.where"), problem, f"set {field} above 0, as 0.2")
    if len(set(metrics)) < len(metrics):
        raise Inconsistent(("evaluate.metrics",), "one is named twice", "name each once")
    facts, dataset = program_of(spec, capabilities), dataset_of(spec, capabilities)
    known = sorted({*HIGHER_IS_BETTER, *facts.metrics})
    for index, metric in enumerate(metrics):
        path = f"evaluate.metrics[{index}]"
        if metric not in known:
            problem = f"neither the platform nor the program measures {metric}"
            raise Unsupported((path, "program"), problem, f"use {one_of(known)}")
        if metric not in facts.metrics:
            _require_metric_fits(path, metric, dataset)
    measurable = most_held_out(data, dataset, spec.evaluate.where)
    if measurable < spec.evaluate.minimum_count:
        raise Inconsistent(
            ("evaluate.minimum_count", field),
            f"a part held out at {spec.evaluate.where} has {measurable} examples at most",
            f"raise {field}, or lower evaluate.minimum_count to {max(measurable, 1)}",
        )


def _require_metric_fits(path: str, metric: str, dataset: DatasetFacts) -> None:
    fields = (path, "data.dataset")
    if dataset.num_classes == 0 and metric in OF_CLASSES:
        raise Inconsistent(fields, f"{metric} needs classes, the targets are real", "use mse")
    if dataset.num_classes != 0 and metric not in OF_CLASSES:
        raise Inconsistent(
            fields, f"{metric} needs real targets, there are classes", "use accuracy"
        )
    if dataset.num_classes != 2 and metric == "auroc":
        problem = f"auroc is for two classes, there are {dataset.num_classes}"
        raise Inconsistent(fields, problem, "use accuracy")
