from latentdiff.training.record import lines_until


def test_lines_up_to_a_batch_without_what_is_none(tmp_path):
    assert list(lines_until(tmp_path, 9)) == []
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"batches_seen": 1, "images_seen": 8, "a": 0.5, "b": null}\n\xff\n3\n{}\n'
        b'{"batches_seen": 2, "images_seen": 16, "a": 1.5}\n{"batches_seen": 3, "images_seen": 24, "a": 2.5}\n{"batc'
    )
    counters = [{"batches_seen": 1, "images_seen": 8}, {"batches_seen": 2, "images_seen": 16}]
    assert list(lines_until(tmp_path, 2)) == list(zip(counters, [{"a": 0.5}, {"a": 1.5}]))
