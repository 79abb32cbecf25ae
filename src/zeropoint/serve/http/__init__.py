"""The HTTP server of `zeropoint serve`: the APIs of OpenAI and Anthropic over Starlette.

`app.py` puts the routes together. Each API has a module: `chat.py`, `completions.py`, `responses.py`, `messages.py`,
`tokenizing.py`, `listing.py`. Each reads the request (`body.py`, `fields.py`) and its options (`options.py`), makes
engine requests (`prompts.py`), runs them (`run.py`), and answers in one piece or as server-sent events (`sse.py`).
`page.py` serves the chat page and its comparisons. `guard.py` checks API keys and origins before a route sees the
request. `server.py` listens and shuts down; `connection.py` sets time limits for clients.
"""
