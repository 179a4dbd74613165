"""The coordinator: the same function as in one process, over a hub on Flower."""

import hashlib
import json
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from tacit.audit.figures import one_thread
from tacit.core.files import make_folder, write_file
from tacit.nn.local_work import parameters_of
from tacit.nn.spec import save_model
from tacit.parties.checkpoints import NOTHING, FileCheckpoint
from tacit.parties.credentials import load
from tacit.parties.links.flower import FlowerHub, Pace
from tacit_flower.common import Plan, folder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write the model and what it cost."""
    config = context.run_config
    plan, out = Plan.of(config), folder(config, "out", "a folder for the result")
    credentials = load(folder(config, "keys", "the coordinator's folder of keys"))
    task, party = plan.task().only(), plan.party(credentials)
    checkpoint = (
        FileCheckpoint(folder(config, "checkpoint", ""), party.digest)
        if config["checkpoint"]
        else NOTHING
    )
    begun = time.monotonic()
    hub = FlowerHub(grid, party, task.owners, pace=Pace(enrolment=float(config["enrolment"])))
    enrolled = time.monotonic()
    with one_thread():
        run = plan.protection.run(hub, task, plan.seat(credentials), checkpoint=checkpoint)
    ended = time.monotonic()
    if isinstance(checkpoint, FileCheckpoint):
        checkpoint.remove()
    model = run.output.value
    make_folder(out)
    save_model(model, task.input_shape, out / "model.safetensors")
    weights = hashlib.sha256(b"".join(a.tobytes() for a in parameters_of(model))).hexdigest()
    found = {
        "scheme": plan.scheme,
        "weights": weights,
        "cost": {role: cost.described() for role, cost in run.cost.by().items()},
        "rounds": run.cost.rounds,
        "seconds": {"enrolment": enrolled - begun, "run": ended - enrolled},
    }
    write_file(out / "run.json", json.dumps(found, indent=1) + "\n")
    print(f"weights {weights}")
