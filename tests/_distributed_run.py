"""Train a small model as a user's script would: `python _distributed_run.py DATA RESULTS PROCESSES`.

Lightning starts the other processes by running this script again. Every process saves what it ends with.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from _factory import make_engine, make_model, mvtec
from lightning import seed_everything

from anomalib_npgmf.host import fit

IMAGES = 6  # that are trained on, all in one step, whatever the number of processes
EPOCHS = 2


def run(data: Path, results: Path, processes: int) -> None:
    """Fit both branches and the composition, then a bank alone; save states as ``<name>_<processes>_<rank>.pt``."""
    torch.set_num_threads(1)
    fit.INITIAL_IMAGES = IMAGES // 2  # every process must draw the same half
    # Codes that die are moved onto random vectors of a batch, whose order differs; that has a test of its own.
    whole: dict[str, Any] = {"composition": True, "logical": {"codebook_restart": False}}
    for name, options in (("whole", whole), ("bank", {"branches": "structural"})):
        seed_everything(0, workers=True)
        model = make_model(visualizer=False, **options)
        if name == "whole":
            # Adam divides a gradient by its own size, which makes a step of a rounding error: on some machines one
            # weight in thousands differed. A plain step shows every difference of the gradients as large as it is.
            optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            model.configure_optimizers = lambda optimiser=optimiser: optimiser
        strategy = "ddp" if processes > 1 else "auto"
        # A folder for each process: anomalib's making of versioned folders is a race.
        root = results / name / str(processes) / os.environ.get("LOCAL_RANK", "0")
        engine = make_engine(root, max_epochs=EPOCHS, devices=processes, strategy=strategy)
        engine.fit(model, datamodule=mvtec(data, train_batch_size=IMAGES // processes))
        torch.save(model.state_dict(), results / f"{name}_{processes}_{model.global_rank}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
