"""``/v1/datasets``: files of examples for simulations, uploaded and named by their digest."""

from __future__ import annotations

from typing import Annotated, Literal

from litestar import Response, get, post
from litestar.params import FromPath, QueryParameter

from clients.resources import Dataset, Page, ShortName
from control_plane import datasets, refusals
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import BodyTooLarge, Call
from control_plane.api.uploads import ARRIVAL_PROBLEMS, Arrived
from sharing.object_store import ObjectTooLarge


@post(
    "/v1/datasets",
    operation_id="uploadDataset",
    tags=["datasets"],
    status_code=201,
    opt={
        "streams": True,
        "upload": ("application/octet-stream", "text/csv"),
        "problems": (
            refusals.Forbidden,
            refusals.QuotaExhausted,
            BodyTooLarge,
            refusals.ProbeFailed,
            *ARRIVAL_PROBLEMS,
        ),
        "also": {200: (Dataset, "The same data set is known already.")},
    },
)
async def upload_dataset(
    request: Call,
    file_format: Annotated[
        Literal["npz", "csv", "parquet"], QueryParameter(name="format", description="Of the file.")
    ],
    label: Annotated[
        str,
        QueryParameter(
            min_length=1, max_length=200, description="Column or array with the labels."
        ),
    ] = "y",
    name: Annotated[ShortName, QueryParameter(description="For people.")] = "dataset",
    upload: Arrived = None,
) -> Response[Dataset]:
    """Upload a .npz, .csv or .parquet file; it is read once in a sandbox."""
    most = request.service.settings.dataset_mb << 20
    if (request.content_length or 0) > most:
        raise BodyTooLarge(f"at most {most} bytes are taken")
    platform, who = request.service.platform, request.who
    try:
        if upload is not None:
            dataset, created = await datasets.take_dataset(
                platform, who, name, file_format, label, upload
            )
        else:
            dataset, created = await datasets.upload_dataset(
                platform, who, name, file_format, label, request.stream()
            )
    except ObjectTooLarge as error:
        raise BodyTooLarge(f"at most {most} bytes are taken") from error
    return Response(
        dataset,
        status_code=201 if created else 200,
        headers={"Location": f"/v1/datasets/{dataset.digest}"},
    )


@get("/v1/datasets", operation_id="listDatasets", tags=["datasets"])
async def list_datasets(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Dataset]]:
    """List the organisation's data sets, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await datasets.list_datasets(platform, request.who, limit, before))


@get("/v1/datasets/{dataset:str}", operation_id="getDataset", tags=["datasets"])
async def get_dataset(request: Call, dataset: FromPath[str]) -> Dataset:
    """Fetch what is known of a data set, by its digest."""
    return await datasets.get_dataset(request.service.platform, request.who, dataset)


HANDLERS = (upload_dataset, list_datasets, get_dataset)
