"""A program that reads messages, at its worst."""

import textwrap

import pytest

from latentdiff.training.wandb_pipe import Pipe


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    """``pipe(code)``: to a program of this code; ``pipe.heard``: what it has said."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def start(code, **options):
        (tmp_path / "program_of_a_test.py").write_text("import json, os, sys, time\n" + textwrap.dedent(code))
        start.heard = []
        return Pipe("program_of_a_test", hear=start.heard.append, **options)

    return start


def test_messages_arrive_in_order_and_answers_are_heard(pipe):
    one = pipe("for line in sys.stdin: print(json.loads(line)['number'], flush=True)")
    for number in range(99):
        one.send({"number": number})
    assert one.close(30, {"number": 99}) == 0
    assert pipe.heard == [str(number) for number in range(100)]
    assert one.lost == 0


def test_the_last_message_arrives_where_others_are_dropped(pipe):
    one = pipe("for line in sys.stdin: print(json.loads(line)['number'], flush=True)", limit=0)
    one.send({"number": 1})
    assert one.close(30, {"number": 2}) == 0
    assert (pipe.heard, one.lost) == (["2"], 1)


def test_one_that_never_reads_is_killed_and_holds_nobody_up(pipe):
    one = pipe("time.sleep(600)", limit=2**20)
    for _ in range(100):
        one.send({"text": "x" * 2**16})
    assert one.close(0.5, {}) < 0
    assert one.lost == 101  # none was read; what the limit left out and what waited


def test_one_that_dies_is_noticed(pipe):
    one = pipe("sys.stdin.readline(); os._exit(3)")
    for _ in range(100):
        one.send({"text": "x" * 2**16})
    assert one.close(30, {}) == 3
    assert one.lost > 90
    one.send({})
    assert one.lost > 91


def test_it_has_no_terminal_and_no_part_in_this_program_s_group(pipe):
    one = pipe("print(os.getpgid(0) == os.getpid(), sys.stdin.isatty()); sys.stdin.read()")
    assert one.close(30, {}) == 0
    assert pipe.heard == ["True False"]
