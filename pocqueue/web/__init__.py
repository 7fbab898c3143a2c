"""The toolkit of every HTTP service. It knows no feature: what it needs comes in as an argument.

A service is a folder (`delegation/`, `node/`; the smallest one is `tests/web/guest_book/`) with

    app.py      `app.make_app` with `door.Door` before it and the routes behind it
    routes      an `APIRouter` of `errors.SentenceRoute`; an error answers with its class's `http_status`
    access      its rule for tokens, a function from a token to its owner, given to `door.Access`
    a database  `sqlite_file.SqliteFile` with a `FileRole` and a list of upgrades

and a line that runs it: ``serve.serve(create_app(…), listener.listen(host, port, prefix))``. Size and time of
requests (`body_limit`, `connection`), their times and the log of refusals (`requests`, `errors`) and wrong tokens
(`failure_limit`) are then seen to. A service without tokens keeps web pages of others away with `origin.OwnOrigin`.
"""
