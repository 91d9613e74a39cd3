"""``latentdiff page``: a stage-two checkpoint in the browser."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from threading import Event

from latentdiff.checkpoint.lookup import resolve
from latentdiff.config.errors import InputError

DEVICES = ("auto", "cpu", "gpu")


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``page``."""
    page = verbs.add_parser(
        "page",
        help="a stage-two checkpoint in the browser: prompts in, images out",
        description="Serves one page on this machine until Ctrl-C. What it shows follows from what the model reads.",
    )
    page.add_argument("checkpoint", help="checkpoint or run directory of stage two")
    page.add_argument("--port", type=int, default=7860, metavar="N")
    page.add_argument("--host", default="127.0.0.1", help="127.0.0.1, this machine alone; 0.0.0.0 for its network too")
    page.add_argument(
        "--share", action="store_true", help="also at a public address for a week, through gradio's relay"
    )
    page.add_argument("--device", choices=DEVICES, default="auto")
    page.add_argument("--first-stage", metavar="PATH", help="where the first stage is now, if it was moved")
    page.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    check_address(arguments.host, arguments.port)
    resolve(arguments.checkpoint)
    with tempfile.TemporaryDirectory(prefix="latentdiff-page-") as folder:
        prepare(folder)
        from latentdiff.app.page.layout import serve
        from latentdiff.app.page.work import Studio

        studio = Studio.of(arguments.checkpoint, device=arguments.device, first_stage=arguments.first_stage)
        served = serve(studio, host=arguments.host, port=arguments.port, share=arguments.share)
        print(f"{served.local_url}{f'  {served.share_url}' if served.share_url else ''}  (Ctrl-C ends it)", flush=True)
        try:
            Event().wait()
        finally:
            served.close(verbose=False)
            studio.close()


def check_address(host: str, port: int) -> None:
    """Raises InputError where nothing can be served there."""
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host, --port: cannot serve at {host}:{port} ({reason}); choose another --port") from error


def prepare(folder: str) -> None:
    """What visitors send and fetch lies in ``folder``; nothing calls home. Raises InputError without gradio."""
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("page: needs gradio; install it with: pip install 'latentdiff[demo]'") from error
