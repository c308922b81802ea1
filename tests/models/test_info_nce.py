"""The contrastive loss against its definition, the spread of embeddings, and the queue of keys."""

import itertools
import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.contrastive.info_nce import info_nce, spread
from models.contrastive.queue import Queue
from tests.support.contrastive import drawn, nce


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=drawn(seed)), dim=1)


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 0.0558542), (0.2, 0.3266517)])
def test_info_nce_is_that_of_the_published_vectors(temperature, expected):
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    loss, _ = info_nce(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6]]), queue, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("num_keys", [1, 7, 4096])
def test_info_nce_is_log_of_one_plus_queue_when_every_key_is_equally_near(num_keys):
    same = unit(1, 8)
    loss, correct = info_nce(unit(5, 8, seed=1), same.expand(5, 8), same.expand(num_keys, 8), 0.07)
    assert loss.item() == pytest.approx(math.log(1 + num_keys), rel=1e-5)
    assert correct == 0  # a tie is an error


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.floats(0.05, 2), st.integers(0, 1000))
def test_info_nce_equals_the_definition(num_videos, num_keys, dimension, temperature, seed):
    queries, keys, queue = (
        unit(rows, dimension, seed=seed + number) for number, rows in enumerate((num_videos, num_videos, num_keys))
    )
    loss, correct = info_nce(queries, keys, queue, temperature)
    q, k, n = queries.double().tolist(), keys.double().tolist(), queue.double().tolist()
    expected = sum(nce(query, key, n, temperature) for query, key in zip(q, k, strict=True)) / num_videos
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    nearer = (queries.double() * keys).sum(dim=1)[:, None] - queries.double() @ queue.double().T > 1e-6
    assert correct.item() == pytest.approx(nearer.all(dim=1).double().mean().item())


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(2, 5), st.floats(0.05, 2), st.integers(0, 1000))
def test_without_a_queue_the_negatives_are_the_keys_of_the_other_videos(num_videos, dimension, temperature, seed):
    queries, keys = unit(num_videos, dimension, seed=seed), unit(num_videos, dimension, seed=seed + 1)
    loss, correct = info_nce(queries, keys, None, temperature)
    q, k = queries.double().tolist(), keys.double().tolist()
    expected = [nce(q[b], k[b], k[:b] + k[b + 1 :], temperature) for b in range(num_videos)]
    assert loss.item() == pytest.approx(sum(expected) / num_videos, rel=1e-3, abs=1e-5)
    nearest = (queries @ keys.T).argmax(dim=1) == torch.arange(num_videos)
    assert correct.item() == pytest.approx(nearest.double().mean().item())


@pytest.mark.parametrize("queue", [unit(6, 4, seed=3), None])
def test_the_gradient_of_info_nce_is_that_of_cross_entropy(queue):
    queries, keys = unit(5, 4).requires_grad_(), unit(5, 4, seed=1)
    if queue is None:
        logits, own = queries @ keys.T / 0.3, torch.arange(5)
    else:
        logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queue.T], dim=1) / 0.3
        own = torch.zeros(5, dtype=torch.long)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, own), queries)
    (gradient,) = torch.autograd.grad(info_nce(queries, keys, queue, 0.3)[0], queries)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("queue", [unit(500, 64, seed=3), None])
def test_under_bf16_autocast_the_loss_is_computed_in_float32(queue):
    queries, keys = unit(300, 64), unit(300, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = info_nce(queries, keys, queue, 0.07)
    assert loss.dtype == torch.float32 and loss == info_nce(queries, keys, queue, 0.07)[0]


def test_a_single_video_without_a_queue_is_refused():
    with pytest.raises(ValueError, match="at least 2 videos, but got 1"):
        info_nce(unit(1, 4), unit(1, 4), None, 0.1)


def test_spread_is_near_1_on_the_whole_sphere_and_0_at_a_point():
    assert spread(unit(5000, 64)).item() == pytest.approx(1, abs=0.01)
    assert spread(unit(1, 64).expand(50, 64)).item() == pytest.approx(0, abs=1e-6)


def test_spread_equals_its_definition():
    embeddings = unit(7, 3).tolist()
    stds = []
    for column in zip(*embeddings, strict=True):
        mean = sum(column) / 7
        stds.append(math.sqrt(sum((value - mean) ** 2 for value in column) / 7))
    assert spread(torch.tensor(embeddings)).item() == pytest.approx(math.sqrt(3) * sum(stds) / 3, rel=1e-5)


# The queue


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=12))
def test_the_queue_holds_the_last_keys_oldest_first_for_batches_of_any_size(size, batches):
    queue = Queue(size, 2, drawn())
    expected, number = deque(queue.keys.tolist(), maxlen=size), itertools.count()
    for batch in batches:
        keys = [[float(next(number)), -1.0] for _ in range(batch)]
        queue.push(torch.tensor(keys).view(-1, 2))
        expected.extend(keys)
        assert queue.keys.roll(-int(queue.head), dims=0).tolist() == list(expected)


def test_the_queue_starts_with_random_directions_of_its_seed():
    keys = Queue(500, 16, drawn()).keys
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(500))
    assert spread(keys).item() == pytest.approx(1, abs=0.03)
    assert torch.equal(keys, Queue(500, 16, drawn()).keys) and not torch.equal(keys, Queue(500, 16, drawn(1)).keys)


def test_the_queue_goes_on_where_it_was_saved():
    queue, other = Queue(5, 2, drawn()), Queue(5, 2, drawn(1))
    queue.push(unit(3, 2))
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push(unit(4, 2, seed=2))
    assert torch.equal(queue.keys, other.keys) and torch.equal(queue.head, other.head) and queue.head == 2
