"""Self-contained checkpoints: weights, config, tokenizer, transform and the list of plugins, in one file.

The file is a Lightning checkpoint with one more key, "velm", of plain Python. Reading it needs neither Lightning
nor the training data, and never runs code from the file: torch opens it with `weights_only`, and the classes that
the config names are looked up among the installed ones. Weights whose name starts with "model." belong to the model.
With an exponential moving average (EMA), "state_dict" holds the average and "current_model_state" the weights as
trained, as Lightning's WeightAveraging callback writes them.
"""

from __future__ import annotations

from velm.checkpoint.build import build_from_checkpoint, build_tokenizer, compare_weights
from velm.checkpoint.content import FORMAT, Checkpoint, weights_of
from velm.checkpoint.folder import is_folder, read_folder, seal_folder, write_folder
from velm.checkpoint.merge import merge
from velm.checkpoint.pack import aligned_by_losses, logits_of, pack
from velm.checkpoint.read import read_checkpoint
from velm.checkpoint.write import write_checkpoint
from velm.errors import CheckpointError

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "aligned_by_losses",
    "build_from_checkpoint",
    "build_tokenizer",
    "compare_weights",
    "is_folder",
    "logits_of",
    "merge",
    "pack",
    "read_checkpoint",
    "read_folder",
    "seal_folder",
    "weights_of",
    "write_checkpoint",
    "write_folder",
]
