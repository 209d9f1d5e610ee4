"""Runs that differ only in numbers, trained together as one compiled program."""

from ml_collections import ConfigDict

from charrnn_jax.config import flatten, to_json

# Numbers that one program can take for every replica apart.
REPLICA_FIELDS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "model.dropout",
    "model.input_dropout",
    "model.init_scale",
)


def program_key(config: ConfigDict) -> str:
    """Returns what runs must have in common to be replicas: all but the values of those fields.

    Whether a rate is zero is part of the program, in which nothing is dropped then.
    """
    key = config.copy_and_resolve_references()
    key.update_from_flattened_dict(
        {
            name: float(value > 0) if name.endswith(("dropout", "decay")) else type(value)()
            for name, value in flatten(config).items()
            if name in REPLICA_FIELDS
        }
    )
    return to_json(key)
