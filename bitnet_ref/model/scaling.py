"""What a training step costs on several nodes, from the config and a few figures of the machine alone.

Data parallel, as train/parallel does it: whole replicas, micro-batches shared out, one exchange of gradients
a step. Each line is a formula with a tag, derived in docs/scaling.md and held against measured steps there.
Read after: model/cost. Read next: cli.
"""

import math
from typing import NamedTuple

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.cost import count_params, saved_bytes_per_token, state_bytes, train_ops_per_token

PIECE = 4 << 20              # bytes of a message: train/parallel's
CLEAR, ADD, UPDATE = 4, 12, 53         # bytes read and written per parameter (docs/scaling.md)


class Node(NamedTuple):
    """What one rank's share of a machine does in a second.

    `products`: operations (peak times the share that products reach); `activations`: bytes of what a token
    saves for backward, which everything but products passes over; `memory`: bytes of flat buffers read or
    written; `network`: bytes to another node, while as many come; `latency`: seconds of an empty message.
    """

    products: float
    activations: float
    memory: float
    network: float
    latency: float


class Job(NamedTuple):
    """A step: `n` micro-batches of `batch` sequences of the model's context, on `nodes` ranks."""

    cfg: ModelConfig
    batch: int
    n: int
    nodes: int


class Step(NamedTuple):
    """Seconds of a step by what they are spent on. They follow one another: nothing overlaps."""

    compute: float
    sums: float
    exchange: float
    update: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)                                                            # (SL.9)


def tokens(job: Job) -> int:
    """Of a micro-batch.
    >>> tokens(Job(ModelConfig(), batch=8, n=1, nodes=1))        # 8 windows of nano's 256
    2048
    """
    return job.batch * job.cfg.context


def step_ops(job: Job) -> int:
    """Operations of a step's products, all nodes together.
    >>> job = Job(ModelConfig(), batch=8, n=1, nodes=1)
    >>> step_ops(job._replace(n=4)) / step_ops(job), step_ops(job._replace(nodes=4)) / step_ops(job)
    (4.0, 1.0)
    """
    return job.n * tokens(job) * train_ops_per_token(job.cfg, job.cfg.context)      # (SL.1)


def most_micro_batches(job: Job) -> int:
    """Of the rank that has the most: the others wait for it.
    >>> [most_micro_batches(Job(ModelConfig(), batch=8, n=8, nodes=nodes)) for nodes in (1, 2, 3, 4, 8)]
    [8, 4, 3, 2, 1]
    """
    return -(-job.n // job.nodes)                                                   # (SL.2)


def micro_batch_seconds(job: Job, node: Node) -> float:
    """Forward and backward of one micro-batch.
    >>> job, node = Job(ModelConfig(), batch=8, n=1, nodes=1), Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> round(micro_batch_seconds(job, node), 2)             # products at 100 Gop/s, 2 GB/s for all else
    0.67
    """
    return (step_ops(job) / job.n / node.products
            + tokens(job) * saved_bytes_per_token(job.cfg) / node.activations)      # (SL.3)


def gradient_bytes(cfg: ModelConfig) -> int:
    """What is exchanged: a float32 for each parameter.
    >>> gradient_bytes(ModelConfig()) // count_params(ModelConfig()).total
    4
    """
    return 4 * count_params(cfg).total                                              # (SL.4)


def buffers(job: Job) -> int:
    """Gradients that a rank holds at once: one for each level of its part of the tree.
    >>> [buffers(Job(ModelConfig(), batch=8, n=n, nodes=1)) for n in (1, 2, 4, 8, 16)]
    [1, 2, 3, 4, 5]
    """
    return most_micro_batches(job).bit_length()                                     # (SL.5)


def rank_bytes(job: Job) -> int:
    """Memory of a rank: the state of training with its gradient, further gradients, one micro-batch.
    >>> job = Job(ModelConfig(), batch=8, n=8, nodes=1)
    >>> rank_bytes(job) > rank_bytes(job._replace(nodes=8))      # fewer sums in progress on each of eight
    True
    """
    return (state_bytes(job.cfg) + (buffers(job) - 1) * gradient_bytes(job.cfg)
            + tokens(job) * saved_bytes_per_token(job.cfg))                         # (SL.6)


def sent_bytes(cfg: ModelConfig, nodes: int) -> float:
    """What a rank sends in a step, and as much comes in: each half of each level, there and back.
    >>> [sent_bytes(ModelConfig(), nodes) / gradient_bytes(ModelConfig()) for nodes in (1, 2, 4, 8)]
    [0.0, 1.0, 1.5, 1.75]
    """
    return 2 * gradient_bytes(cfg) * (nodes - 1) / nodes                            # (SL.7)


def exchange_seconds(cfg: ModelConfig, nodes: int, node: Node) -> float:
    """From the sums of each rank to the sum of all on every rank, additions included.
    >>> node = Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> [round(exchange_seconds(ModelConfig(), nodes, node), 3) for nodes in (1, 2, 4, 8)]
    [0.0, 0.021, 0.031, 0.036]
    """
    if nodes == 1:
        return 0.0
    sent = sent_bytes(cfg, nodes)
    messages = 2 * math.log2(nodes) + sent / PIECE
    adding = ADD / 4 * sent / 2 / node.memory
    return messages * node.latency + sent / node.network + adding                   # (SL.8)


def step(job: Job, node: Node) -> Step:
    """The seconds of a step on the rank that has the most to do.
    >>> job, node = Job(ModelConfig(), batch=8, n=8, nodes=4), Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> [f"{name} {seconds:.3f}" for name, seconds in step(job, node)._asdict().items()]
    ['compute 1.336', 'sums 0.009', 'exchange 0.031', 'update 0.024']
    """
    P, most = count_params(job.cfg).total, most_micro_batches(job)
    return Step(most * micro_batch_seconds(job, node), (most * CLEAR + (most - 1) * ADD) * P / node.memory,
                exchange_seconds(job.cfg, job.nodes, node), UPDATE * P / node.memory)


def efficiency(job: Job, node: Node) -> float:
    """Of N nodes, the share that is not lost to what one node alone need not do.
    >>> job, node = Job(ModelConfig(), batch=8, n=8, nodes=8), Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> [round(efficiency(job._replace(batch=n), node), 2) for n in (8, 1)]      # an exchange costs the same
    [0.93, 0.64]
    """
    alone = step(job._replace(nodes=1), node).seconds
    return alone / job.nodes / step(job, node).seconds                              # (SL.10)


# ---- other ways to exchange, to compare with ----

def whole_buffer_seconds(cfg: ModelConfig, nodes: int, node: Node) -> float:
    """The same tree with whole gradients from rank to rank, and the sum back by a broadcast.
    >>> node = Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> [round(whole_buffer_seconds(ModelConfig(), nodes, node), 3) for nodes in (2, 4, 8)]
    [0.041, 0.082, 0.123]
    """
    levels, whole = math.ceil(math.log2(nodes)), gradient_bytes(cfg)
    return levels * (2 * whole / node.network + ADD / 4 * whole / node.memory)      # (SL.11)


def ring_seconds(cfg: ModelConfig, nodes: int, node: Node) -> float:
    """A ring all-reduce: its order of additions depends on the number of ranks.
    >>> node = Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> [round(ring_seconds(ModelConfig(), n, node), 3) for n in (2, 8, 1024)]       # a turn for each node
    [0.021, 0.036, 0.061]
    """
    sent = sent_bytes(cfg, nodes)
    return (2 * (nodes - 1) * node.latency + sent / node.network
            + ADD / 4 * sent / 2 / node.memory)                                     # (SL.12)


def hidden_seconds(job: Job, node: Node) -> float:
    """What an exchange that began within the last backward could hide at most: its two thirds.
    >>> job, node = Job(ModelConfig(), batch=8, n=8, nodes=8), Node(1e11, 2e9, 1e10, 1e9, 1e-5)
    >>> hidden_seconds(job, node) / step(job, node).exchange     # so fast a network could be hidden whole
    1.0
    """
    behind = 2 / 3 * micro_batch_seconds(job, node)
    return min(exchange_seconds(job.cfg, job.nodes, node), behind)                  # (SL.13)
