"""A worker with a ClientApp that adds one to what comes; started by test_flower_grid."""

from __future__ import annotations

import sys

import msgspec
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from workflows.flower_grid import Deliver, NodeDesk, identify, to_arrays, to_record
from workflows.worker import serve
from workflows.workers import Station

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    site = str(context.node_config["site"])
    if message.content.get("config", {}).get("fail-at") == site:
        raise ValueError(f"no training at {site}")
    arrays = {
        record: to_record({name: x + 1 for name, x in to_arrays(content).items()})
        for record, content in message.content.array_records.items()
    }
    content = RecordDict(
        {
            **arrays,
            "metrics": MetricRecord({"num-examples": context.node_id, "values": [0.5, 1.5]}),
            "where": ConfigRecord({"site": site, "group": message.metadata.group_id}),
        }
    )
    return Message(content, reply_to=message)


if __name__ == "__main__":
    identify()
    serve(msgspec.json.decode(sys.argv[-1], type=Station), NodeDesk(app).deliver, Deliver)
