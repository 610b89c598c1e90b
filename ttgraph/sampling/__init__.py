"""Mini batches of a graph: sampled neighbourhoods, groups of whole first-digit parts, and the order of seeds."""

from ttgraph.sampling.neighbors import CSRNeighborSampler, NeighborSample
from ttgraph.sampling.partitions import PartitionBatch, partition_batch, partition_batches
from ttgraph.sampling.seeds import seed_batches

__all__ = [
    "CSRNeighborSampler",
    "NeighborSample",
    "PartitionBatch",
    "partition_batch",
    "partition_batches",
    "seed_batches",
]
