from __future__ import annotations

import asyncio
import math
from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import func, insert, select, update

from clients.identity import Principal
from clients.resources import NewCollaboration, Role
from control_plane.accounts import bootstrap
from control_plane.admission import INTERPRETER_MB, dry_run, submit_job
from control_plane.collaborations import found_collaboration
from control_plane.jobs import get_job, list_events
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import COLLABORATION, DATASET, IDEMPOTENCY, JOB, PROGRAM
from control_plane.refusals import Forbidden, KeyReused, StillInFlight
from control_plane.views import text_of
from sharing.object_store import digest_of
from strategies import FedAvg
from strategies.fedbuff import FedBuff
from strategies.tally import Tally
from strategies.xgb_bagging import XgbBagging
from tests.control_plane.conftest import People, job_spec
from workflows.analyses.quantile import Quantile
from workflows.arrivals import VirtualTime
from workflows.capabilities import DatasetFacts, Parameter, ProgramFacts
from workflows.codecs.int8 import Int8
from workflows.job import (
    Analysis,
    Builtin,
    Bundle,
    Cohort,
    FromModel,
    Inconsistent,
    JobError,
    JobSpec,
    Partitioned,
    Runtime,
    Unsupported,
)
from workflows.plan import plan_digest
from workflows.programs import BUILTIN
from workflows.run import Desired, Phase

pytestmark = pytest.mark.anyio
FACTS = ProgramFacts(
    framework="torch",
    parameters=(
        Parameter(name="w", shape=(64, 10), dtype="float32"),
        Parameter(name="b", shape=(10,), dtype="float64"),
    ),
    features=(64,),
)


async def count_jobs(platform: Platform) -> int:
    row = await platform.database.one_or_none(select(func.count().label("n")).select_from(JOB))
    assert row is not None
    return int(row.n)


async def test_a_submitted_job_is_pending_with_its_event(
    platform: Platform, admin: Principal
) -> None:
    spec = job_spec()

    job = await submit_job(platform, admin, spec, None)

    assert job.id.startswith("job-")
    assert (job.phase, job.desired, job.waits_for) == (Phase.PENDING, Desired.RUN, "its turn")
    assert (job.organisation, job.submitted_by) == (admin.organisation, admin.user)
    assert job.spec == spec
    assert job.plan_digest == plan_digest(spec, platform.environment)
    [event] = (await list_events(platform, admin, job.id, 0, 10)).items
    assert (event.id, event.kind, event.fields) == (1, "job.submitted", {"name": "digits"})
    assert (await get_job(platform, admin, job.id)).value == job


async def test_an_analysis_is_on_record_with_what_its_query_needs(
    platform: Platform, admin: Principal
) -> None:
    query = Quantile(column=0, levels=(0.5,), low=0, high=1, rounds=4)
    short = JobSpec(
        name="medians",
        program=Analysis(query=query),
        data=Partitioned(dataset="digits", sites=4),
        runtime=Runtime(kind="native"),
    )

    job = await submit_job(platform, admin, short, "key-0001")
    again = await submit_job(platform, admin, job.spec, "key-0002")
    foreseen = await dry_run(platform, admin, short)

    assert await submit_job(platform, admin, short, "key-0001") == job
    assert (job.rounds, job.spec.strategy, job.spec.output.onnx) == (4, Tally(), ())
    assert job.plan_digest == again.plan_digest == foreseen.plan_digest
    assert list(foreseen.steps) == ["federate"]
    assert foreseen.parameters == 4 * (64 + 2) + 4
    assert foreseen.memory_mb["worker"] < 200


async def test_the_same_key_and_job_give_the_same_answer(
    platform: Platform, admin: Principal
) -> None:
    first = await submit_job(platform, admin, job_spec(), "key-0001")
    second = await submit_job(platform, admin, job_spec(), "key-0001")
    other = await submit_job(platform, admin, job_spec(), "key-0002")

    assert first == second != other
    assert await count_jobs(platform) == 2


async def test_the_same_key_with_another_job_is_refused(
    platform: Platform, admin: Principal
) -> None:
    await submit_job(platform, admin, job_spec(), "key-0001")

    with pytest.raises(KeyReused):
        await submit_job(platform, admin, job_spec(rounds=4), "key-0001")

    assert await count_jobs(platform) == 1


async def test_a_key_is_its_users_own(platform: Platform, people: People) -> None:
    colleague = await people.add("home", "bob", Role.DEVELOPER)

    first = await submit_job(platform, people.admin, job_spec(), "key-0001")
    second = await submit_job(platform, colleague, job_spec(rounds=4), "key-0001")

    assert first.id != second.id


async def test_of_two_submissions_with_one_key_at_once_one_is_told_to_wait(
    platform: Platform, admin: Principal
) -> None:
    answers = await asyncio.gather(
        *(submit_job(platform, admin, job_spec(), "key-0001") for _ in range(2)),
        return_exceptions=True,
    )

    assert sorted(type(answer).__name__ for answer in answers) == ["Job", "StillInFlight"]
    assert isinstance(answers[1], StillInFlight)
    assert await count_jobs(platform) == 1
    assert await submit_job(platform, admin, job_spec(), "key-0001") == answers[0]


async def test_a_job_that_does_not_fit_leaves_nothing(platform: Platform, admin: Principal) -> None:
    with pytest.raises(Inconsistent):
        await submit_job(platform, admin, job_spec(cohort=Cohort(size=100)), "key-0001")

    assert await count_jobs(platform) == 0
    assert await platform.database.rows(select(IDEMPOTENCY.c.key)) == []
    await submit_job(platform, admin, job_spec(), "key-0001")


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.PRIVACY_OFFICER, Role.DATA_OWNER])
async def test_who_only_reads_may_not_submit(
    platform: Platform, people: People, role: Role
) -> None:
    reader = await people.add("home", "ada", role)

    with pytest.raises(Forbidden):
        await submit_job(platform, reader, job_spec(), None)
    with pytest.raises(Forbidden):
        await dry_run(platform, reader, job_spec())


async def test_a_job_without_a_collaboration_belongs_to_the_organisations_own(
    platform: Platform, people: People
) -> None:
    dora = await people.add("elsewhere", "dora", Role.DEVELOPER)

    job = await submit_job(platform, dora, job_spec(), None)

    row = await platform.database.one_or_none(
        select(COLLABORATION.c.name).where(COLLABORATION.c.id == job.collaboration)
    )
    assert row is not None
    assert row.name == "elsewhere"


async def test_a_collaboration_one_is_not_in_is_refused_like_one_that_is_not(
    platform: Platform, people: People
) -> None:
    await people.add("elsewhere", "dora", Role.DEVELOPER)

    refusals = []
    for name in ("elsewhere", "nowhere"):
        with pytest.raises(Inconsistent) as refused:
            await submit_job(platform, people.admin, job_spec(collaboration=name), None)
        refusals.append((refused.value.fields, str(refused.value).replace(name, "X")))

    assert refusals[0] == refusals[1]
    assert refusals[0][0] == ("collaboration",)


async def test_a_collaboration_that_has_ended_takes_no_jobs(
    platform: Platform, admin: Principal
) -> None:
    ended = platform.now() - timedelta(days=1)
    async with platform.database.writing() as transaction:
        await transaction.execute(update(COLLABORATION).values(ends_at=ended))

    with pytest.raises(Inconsistent, match="it ended on"):
        await submit_job(platform, admin, job_spec(), None)


async def test_a_collaboration_keeps_to_its_datasets(platform: Platform, admin: Principal) -> None:
    new = NewCollaboration(name="flowers", datasets=("iris",))
    await found_collaboration(platform, admin, new)

    with pytest.raises(Inconsistent) as refused:
        await submit_job(platform, admin, job_spec(collaboration="flowers"), None)

    assert refused.value.fields == ("data.dataset", "collaboration")


async def test_programs_and_datasets_are_those_of_ones_own_organisation(
    platform: Platform, people: People
) -> None:
    dora = await people.add("elsewhere", "dora", Role.DEVELOPER)
    program, dataset = digest_of(b"program"), digest_of(b"dataset")
    now = platform.now()
    async with platform.database.writing() as transaction:
        row = {"organisation": dora.organisation, "size_bytes": 1, "created_at": now, "name": "x"}
        await transaction.execute(
            insert(PROGRAM), {**row, "digest": program, "facts": text_of(FACTS)}
        )
        facts = DatasetFacts(num_examples=1000, features=(64,), num_classes=10)
        await transaction.execute(
            insert(DATASET),
            {
                **row,
                "digest": dataset,
                "facts": text_of(facts),
                "label": "digit",
                "format": "npz",
            },
        )

    def spec(label: str = "digit") -> JobSpec:
        return job_spec(
            program=Bundle(digest=program),
            data=Partitioned(dataset=dataset, sites=4, label=label),
        )

    assert (await submit_job(platform, dora, spec(), None)).phase is Phase.PENDING
    with pytest.raises(Inconsistent) as label:
        await submit_job(platform, dora, spec("y"), None)
    assert label.value.fields == ("data.label",)
    assert "digit" in str(label.value)
    with pytest.raises(Unsupported):
        await submit_job(platform, people.admin, spec(), None)


async def test_a_model_that_one_may_not_see_is_no_start(
    platform: Platform, admin: Principal
) -> None:
    spec = job_spec(init=FromModel(digest=digest_of(b"a model")))

    with pytest.raises(JobError) as refused:
        await submit_job(platform, admin, spec, None)

    assert refused.value.fields[0] == "init.digest"


async def test_a_runtime_that_is_not_there_is_refused(platform: Platform, admin: Principal) -> None:
    with pytest.raises(Unsupported) as refused:
        await submit_job(platform, admin, job_spec(runtime=Runtime(kind="nvflare")), None)

    assert refused.value.fields[0] == "runtime.kind"


async def test_a_dry_run_predicts_and_records_nothing(platform: Platform, admin: Principal) -> None:
    program = digest_of(b"program")
    async with platform.database.writing() as transaction:
        await transaction.execute(
            insert(PROGRAM),
            {
                "organisation": admin.organisation,
                "digest": program,
                "name": "x",
                "size_bytes": 1,
                "facts": text_of(FACTS),
                "created_at": platform.now(),
            },
        )
    spec = job_spec(program=Bundle(digest=program), rounds=7, strategy=FedAvg())

    found = await dry_run(platform, admin, spec)

    model_bytes = 640 * 4 + 10 * 8
    assert found.parameters == 650
    assert found.bytes_per_site_and_round == {"up": model_bytes, "down": model_bytes}
    assert found.bytes_total == 2 * model_bytes * 4 * 7
    assert list(found.steps) == ["federate", "translate", "publish"]
    assert found.steps["federate"] == ("workflows.runtimes.native",)
    assert found.plan_digest == plan_digest(spec, platform.environment)
    assert found.epsilon is None
    assert await count_jobs(platform) == 0


async def test_a_dry_run_counts_the_bytes_of_the_codec(
    platform: Platform, admin: Principal
) -> None:
    spec = job_spec(program=Builtin(name="digits-mlp"), rounds=7)
    sizes = [math.prod(parameter.shape) for parameter in BUILTIN["digits-mlp"].parameters]

    found = await dry_run(platform, admin, msgspec.structs.replace(spec, codec=Int8(bucket=64)))

    up, down = sum(4 * -(-size // 64) + size for size in sizes), 4 * sum(sizes)
    assert found.bytes_per_site_and_round == {"up": up, "down": down}
    assert found.bytes_total == (up + down) * spec.cohort_size * 7


async def test_a_dry_run_counts_what_travels_and_holds_the_base_too(
    platform: Platform, admin: Principal
) -> None:
    spec = job_spec(program=Builtin(name="digits-lora"))
    facts = BUILTIN["digits-lora"]
    size = 4 * sum(math.prod(parameter.shape) for parameter in facts.parameters)

    found = await dry_run(platform, admin, spec)

    assert found.bytes_per_site_and_round == {"up": size, "down": size}
    assert found.memory_mb["worker"] == INTERPRETER_MB + 1  # 6 * 23 kB + 2 * 330 kB


async def test_a_dry_run_counts_the_answers_of_a_buffer(
    platform: Platform, admin: Principal
) -> None:
    cohort = Cohort(size=4, arrivals=VirtualTime())
    spec = job_spec(
        program=Builtin(name="digits-mlp"), rounds=7, strategy=FedBuff(buffer=3), cohort=cohort
    )

    found = await dry_run(platform, admin, spec)

    each = sum(found.bytes_per_site_and_round.values())
    assert found.bytes_total == each * 3 * 7


async def test_a_dry_run_counts_trees_as_full_ones(platform: Platform, admin: Principal) -> None:
    spec = msgspec.structs.replace(
        job_spec(program=Builtin(name="digits-xgb"), rounds=3), strategy=XgbBagging()
    )
    facts = BUILTIN["digits-xgb"]

    found = await dry_run(platform, admin, spec)

    empty, sites = facts.parameters[0].shape[0], spec.cohort_size
    up = empty + spec.local.epochs * facts.growth_bytes
    models = [empty + k * sites * spec.local.epochs * facts.growth_bytes for k in range(4)]
    assert found.bytes_per_site_and_round == {"up": up, "down": models[3]}
    assert found.bytes_total == sites * (3 * up + sum(models[:3]))


async def test_what_was_admitted_survives_a_new_process(
    platform: Platform, admin: Principal, database_url: str | None
) -> None:
    job = await submit_job(platform, admin, job_spec(), "key-0001")

    async with open_platform(
        folder=platform.folder, store=platform.store, database_url=database_url
    ) as again:
        assert await bootstrap(again) is None
        assert (await get_job(again, admin, job.id)).value == job
        assert await submit_job(again, admin, job_spec(), "key-0001") == job


def test_a_job_is_stored_as_it_is_on_the_wire() -> None:
    assert msgspec.json.decode(text_of(job_spec()), type=JobSpec) == job_spec()
