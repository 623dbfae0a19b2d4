import torch

from ray_sassl.nn.queue import NO_SAMPLE, EmbeddingQueue


def _rows(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(-1, 3).clone()


def test_a_queue_starts_with_unit_vectors_of_no_sample():
    embeddings, sample_id = EmbeddingQueue(16, 8).read()
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(16))
    assert sample_id.tolist() == [NO_SAMPLE] * 16


def test_writing_wraps_around_and_drops_no_row_if_the_size_is_not_a_multiple_of_the_batch():
    queue = EmbeddingQueue(10, 3)
    for start in range(0, 40, 4):
        queue.write(_rows(start, 4), torch.arange(start, start + 4))
        held = sorted(i for i in queue.read()[1].tolist() if i != NO_SAMPLE)
        assert held == list(range(max(0, start + 4 - 10), start + 4))
    embeddings, sample_id = queue.read()
    assert torch.equal(embeddings[:, 0].long(), sample_id)


def test_of_a_batch_larger_than_the_queue_the_last_rows_stay():
    queue = EmbeddingQueue(4, 3)
    queue.write(_rows(0, 11), torch.arange(11))
    assert sorted(queue.read()[1].tolist()) == [7, 8, 9, 10]


def test_what_was_read_does_not_change_when_the_queue_is_written():
    queue = EmbeddingQueue(4, 3)
    embeddings, _ = queue.read()
    before = embeddings.clone()
    queue.write(_rows(0, 4))
    assert torch.equal(embeddings, before)


def test_a_queue_continues_from_its_state_dict():
    queue, other = EmbeddingQueue(7, 3), EmbeddingQueue(7, 3)
    queue.write(_rows(0, 5), torch.arange(5))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.write(_rows(5, 5), torch.arange(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(queue.read(), other.read(), strict=True))
