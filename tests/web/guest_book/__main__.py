"""`python -m tests.web.guest_book FILE PORT`."""

from __future__ import annotations

import sys
from pathlib import Path

from pocqueue.web.listener import listen
from pocqueue.web.serve import serve
from tests.web.guest_book.app import create_app

serve(
    create_app(Path(sys.argv[1])),
    listen("127.0.0.1", int(sys.argv[2]), "GUEST_BOOK_"),
    websockets=True,
)
