"""HTTP of `zeropoint serve`: the APIs of OpenAI and Anthropic over Starlette.

`app.py` puts the routes together. Each API has a module: `chat.py`, `completions.py`, `responses.py`, `messages.py`,
`tokenizing.py`, `listing.py`. They read requests (`body.py`, `fields.py`), turn text into tokens (`prompts.py`) and
options into engine requests (`options.py`), run them (`run.py`), and answer in one piece or as events (`sse.py`).
`page.py` serves the chat page and its comparisons. `guard.py` refuses requests before a route sees them; `server.py`
listens, with time limits, and shuts down.
"""
