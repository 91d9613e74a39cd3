"""``latentdiff page`` before it serves anything."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from latentdiff.app import cli
from latentdiff.app.page import verb as page
from latentdiff.config.errors import InputError


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["page", "no/such/checkpoint", "--port", port]) == 2
    assert f"cannot serve at 127.0.0.1:{port}" in capsys.readouterr().err
    with pytest.raises(InputError, match="port must be 0-65535"):
        page.check_address("127.0.0.1", 70000)


def test_gradio_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[demo\]'"):
        page.prepare(str(tmp_path))
