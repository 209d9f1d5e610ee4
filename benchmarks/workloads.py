"""The workloads that are measured: sizes of models and batches, and their arithmetic."""

from dataclasses import dataclass, replace

from charrnn_jax.models.cells import CELLS


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
      name: name; T: a whole training step; S: sampling; I1: the input pipeline; C1: a cold start.
      kind: "train", "sample", "input" or "start".
      about: short description.
      cell: "gru" or "lstm".
      hidden_size: H.
      embedding_size: E.
      batch_size: B.
      length: T, or the number of characters to sample.
      dtype: number type of the operands of products.
      vocabulary_size: V.
    """

    name: str
    kind: str
    about: str
    cell: str = "gru"
    hidden_size: int = 1024
    embedding_size: int = 256
    batch_size: int = 64
    length: int = 100
    dtype: str = "float32"
    vocabulary_size: int = 66

    @property
    def products(self) -> list[tuple[int, int, int, int]]:
        """(count, M, K, N) of the products [M, K] @ [K, N] that the work cannot do without.

        The input side is left out: it is a table of V rows and costs next to nothing.
        """
        b, t, h, v = self.batch_size, self.length, self.hidden_size, self.vocabulary_size
        n = CELLS[self.cell].count_weights(self.embedding_size, h)[1] // h
        if self.kind == "sample":
            return [(t, b, h, n), (t, b, h, v)]
        return [
            (t, b, h, n),
            (t, b, n, h),
            (1, h, b * t, n),
            (1, b * t, h, v),
            (1, b * t, v, h),
            (1, h, b * t, v),
        ]

    @property
    def flops(self) -> int:
        return sum(2 * count * m * k * n for count, m, k, n in self.products)

    @property
    def chars(self) -> int:
        """Characters that one run of the workload predicts or writes."""
        return self.batch_size * self.length


_LIST = [
    Workload("T1", "train", "GRU-1024, E256 B64 T100"),
    Workload("T2", "train", "LSTM-1024, E256 B64 T100", cell="lstm"),
    Workload("T3", "train", "GRU-256, B32 T64", hidden_size=256, batch_size=32, length=64),
    Workload("T4", "train", "GRU-1024 in bfloat16, E256 B64 T100", dtype="bfloat16"),
    Workload("S1", "sample", "GRU-1024, 1 text of 1000", batch_size=1, length=1000),
    Workload("S5", "sample", "GRU-1024, 5 texts of 1000", batch_size=5, length=1000),
    Workload("S64", "sample", "GRU-1024, 64 texts of 1000", batch_size=64, length=1000),
    Workload("S1b", "sample", "S1 in bfloat16", batch_size=1, length=1000, dtype="bfloat16"),
    Workload("S64b", "sample", "S64 in bfloat16", batch_size=64, length=1000, dtype="bfloat16"),
    Workload("I1", "input", "batches of 64 x 100 from a text of 1,115,394 characters"),
    Workload("C1", "start", "T1 from the command to the end of the first step"),
]
WORKLOADS = {workload.name: workload for workload in _LIST}

_CURVE = replace(WORKLOADS["T3"], kind="train")
CURVES = {
    "hidden_size": [replace(_CURVE, hidden_size=h) for h in (128, 256, 512, 1024, 2048)],
    "batch_size": [replace(_CURVE, batch_size=b) for b in (1, 4, 16, 64, 256)],
    "length": [replace(_CURVE, length=t) for t in (16, 64, 256, 1024)],
}


def tiny(workload: Workload) -> Workload:
    """Returns the workload at a size that only tests the programs."""
    return replace(
        workload,
        hidden_size=16,
        embedding_size=8,
        batch_size=min(workload.batch_size, 3),
        length=min(workload.length, 60) if workload.kind == "sample" else 5,
    )
