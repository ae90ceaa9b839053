"""The order of samples: fair, full batches, the same from any index on, and independent of batching."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.config.seeds import sample_seed
from lora_trainer.data.order import Order

cases = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=12)
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(1, 5), seeds, st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_any_index_in_any_order_gives_the_same(case, batch_size, seed, wanted) -> None:
    buckets, repeats = [bucket for bucket, _ in case], [times for _, times in case]
    straight = Order(seed, buckets, repeats, batch_size)
    whole = [straight.micro_batch(index) for index in range(max(wanted) + 1)]
    jumping = Order(seed, buckets, repeats, batch_size)
    assert [jumping.micro_batch(index) for index in wanted] == [whole[index] for index in wanted]


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(1, 5), seeds)
def test_batches_are_full_of_one_bucket_and_images_are_seen_equally_often(case, batch_size, seed) -> None:
    buckets, repeats = [bucket for bucket, _ in case], [times for _, times in case]
    order = Order(seed, buckets, repeats, batch_size)
    epochs = 30
    count = epochs * sum(repeats) // batch_size
    batches = [order.micro_batch(index) for index in range(count)]
    samples = [sample for batch in batches for sample in batch]
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len({buckets[sample.item] for sample in batch}) == 1 for batch in batches)
    assert [sample.position for sample in samples] == list(range(count * batch_size))
    looks = Counter((sample.item, sample.visit) for sample in samples)
    assert max(looks.values()) == 1  # no look at an image comes twice
    # What has left is a prefix of the shuffled epochs, but for what stands in the queues: less than a batch in each.
    shortest, longest = len(samples), len(samples) + len(set(buckets)) * (batch_size - 1)
    seen = Counter(sample.item for sample in samples)
    for item, times in enumerate(repeats):
        assert seen[item] >= shortest // sum(repeats) * times - (batch_size - 1)
        assert seen[item] <= -(-longest // sum(repeats)) * times


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=9), seeds, st.integers(2, 4))
def test_accumulation_sees_the_same_samples_at_the_same_positions(repeats, seed, size) -> None:
    one_bucket = [0] * len(repeats)
    large, small = Order(seed, one_bucket, repeats, size), Order(seed, one_bucket, repeats, 1)
    for index in range(40):
        accumulated = [sample for step in range(size) for sample in small.micro_batch(index * size + step)]
        assert large.micro_batch(index) == accumulated


def test_each_epoch_holds_every_image_and_is_shuffled_anew() -> None:
    order = Order(7, [0] * 50, [1] * 50, 1)
    epochs = [[order.micro_batch(epoch * 50 + i)[0] for i in range(50)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(sample.item for sample in epoch) == list(range(50))
        assert {sample.visit for sample in epoch} == {number}
    arrangements = {tuple(sample.item for sample in epoch) for epoch in epochs}
    assert len(arrangements) == 3
    assert tuple(range(50)) not in arrangements


def test_no_look_is_lost_over_many_epochs() -> None:
    images, epochs, size, buckets = 300, 60, 4, 7
    order = Order(11, [item % buckets for item in range(images)], [1] * images, size)
    seen = {(sample.item, sample.visit) for i in range(images * epochs // size) for sample in order.micro_batch(i)}
    due = {(item, visit) for item in range(images) for visit in range(epochs)}
    assert len(seen) == images * epochs
    assert len(due - seen) <= buckets * (size - 1)  # those in the queues, each less than a batch


def test_the_stream_is_the_same_in_every_release_of_numpy() -> None:
    # Made by this code with numpy 2.4.6 and with 1.26.2, which agree: PCG64's raw stream is promised not to change.
    order = Order(42, [0, 1, 0, 0, 1], [1, 1, 1, 2, 1], 2)
    items = [[sample.item for sample in order.micro_batch(index)] for index in (0, 1, 2, 3, 1000)]
    assert items == [[3, 3], [0, 2], [1, 4], [1, 4], [3, 3]]
    assert [type(value) for value in order.micro_batch(0)[0]] == [int, int, int]


def test_nothing_to_see_is_refused() -> None:
    for buckets, repeats, size in (([], [], 1), ([0], [0], 1), ([0], [1], 0), ([0, 1], [1], 1)):
        with pytest.raises(ValueError, match="at least one item"):
            Order(0, buckets, repeats, size)


def test_seeds_of_samples_are_their_own() -> None:
    seeds = {sample_seed(seed, position, purpose) for seed in (1, 2) for position in range(500) for purpose in "ab"}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    # printf 42/7/noise | b2sum -l 64 (GNU coreutils), without its lowest bit
    assert sample_seed(42, 7, "noise") == 0x6E60A8D89E859335 >> 1
