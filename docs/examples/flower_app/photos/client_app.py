"""What a client does: local epochs over its own images."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from .task import build, images_of, normalise

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Plain SGD from the weights that the server sent."""
    torch.set_num_threads(1)
    images, labels = images_of(int(context.node_config["partition-id"]))
    model = build()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    rate = message.content.config_records["config"]["lr"]
    assert isinstance(rate, float)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(int(context.run_config["local-epochs"])):
        for part in torch.arange(len(images)).split(int(context.run_config["batch-size"])):
            optimizer.zero_grad()
            cross_entropy(model(normalise(images[part])), labels[part]).backward()
            optimizer.step()
    metrics = MetricRecord({"num-examples": len(images), "partition-id": int(context.node_config["partition-id"])})
    reply = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=reply, reply_to=message)
