"""model/scaling: limits that any cost model must keep, and figures worked out by hand.

That its bytes, messages and buffers are those of train/parallel is tested there.
"""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_ref.config import PRESETS
from bitnet_ref.model import scaling
from bitnet_ref.model.cost import count_params, saved_bytes_per_token, train_ops_per_token
from bitnet_ref.model.scaling import Job, Node

NANO = PRESETS["nano"].model
FREE = Node(1e9, math.inf, math.inf, math.inf, 0.0)        # products alone take time
counts, rates = st.integers(0, 10).map(lambda i: 2 ** i), st.floats(1e6, 1e13)
nodes = st.builds(Node, rates, rates, rates, rates, st.floats(0, 1e-2))


@given(node=nodes, n=counts, more=counts)
def test_more_nodes_never_lose_less(node, n, more):
    """Of the same step: every node that is added brings an exchange and no work of its own to save."""
    job = Job(NANO, 2, 2 * n * more, n)
    before, after = (scaling.efficiency(j, node) for j in (job, job._replace(nodes=n * more)))
    assert 0 < after <= before * (1 + 1e-12)


@given(node=nodes)
def test_one_node_loses_nothing_and_exchanges_nothing(node):
    job = Job(NANO, 2, 4, 1)
    assert scaling.efficiency(job, node) == 1
    assert scaling.step(job, node).exchange == scaling.sent_bytes(NANO, 1) == 0


@given(n=st.integers(1, 600), N=st.integers(1, 600))
def test_products_alone_scale_but_for_the_remainder(n, N):
    lost = n / N / math.ceil(n / N)
    assert scaling.efficiency(Job(NANO, 1, n, N), FREE) == pytest.approx(lost, rel=1e-12)


@given(node=nodes, N=counts)
def test_halves_are_never_slower_than_whole_buffers(node, N):
    """But for the latencies of their pieces."""
    quick = node._replace(latency=0.0)
    whole = scaling.whole_buffer_seconds(NANO, N, quick)
    assert scaling.exchange_seconds(NANO, N, quick) <= whole * (1 + 1e-12)


@given(node=nodes, N=counts)
def test_what_is_hidden_is_part_of_the_exchange(node, N):
    job = Job(NANO, 2, N, N)
    assert 0 <= scaling.hidden_seconds(job, node) <= scaling.step(job, node).exchange


def test_a_step_by_hand():
    """4 micro-batches of 2 x 256 tokens on 2 nodes; P = 4,470,016 of nano with a vocabulary of 4,096."""
    P, node = count_params(NANO).total, Node(1e11, 1e9, 1e10, 1e9, 1e-5)
    step = scaling.step(Job(NANO, 2, 4, 2), node)
    micro = 512 * (train_ops_per_token(NANO, 256) / 1e11 + saved_bytes_per_token(NANO) / 1e9)
    assert step.compute == pytest.approx(2 * micro)
    assert step.sums == pytest.approx((8 + 12) * P / 1e10)
    assert step.exchange == pytest.approx((2 + 4 * P / 2 ** 22) * 1e-5 + 4 * P / 1e9 + 6 * P / 1e10)
    assert step.update == pytest.approx(53 * P / 1e10)
    assert step.seconds == pytest.approx(sum(step))


def test_memory_by_hand():
    """64 micro-batches on 8 nodes are 8 each: 4 levels, so 3 gradients beside that of the state."""
    cfg = dataclasses.replace(NANO, linear="full")
    P = count_params(cfg).total
    job = Job(cfg, 2, 64, 8)
    assert (scaling.most_micro_batches(job), scaling.buffers(job)) == (8, 4)
    assert scaling.rank_bytes(job) == 16 * P + 3 * 4 * P + 512 * saved_bytes_per_token(cfg)


def test_the_ring_sends_as_much_and_waits_longer():
    node = Node(1, 1, math.inf, 1e9, 1e-3)
    bytes_alone = scaling.sent_bytes(NANO, 64) / 1e9
    assert scaling.ring_seconds(NANO, 64, node) == pytest.approx(bytes_alone + 126e-3)
    pieces = scaling.sent_bytes(NANO, 64) / scaling.PIECE
    assert scaling.exchange_seconds(NANO, 64, node) == pytest.approx(bytes_alone + (12 + pieces) * 1e-3)
