"""`zeropoint serve`: many requests on one model at once, over HTTP.

From the bottom up: `request.py` holds the values that travel between a client and an engine. `engine.py` runs one
model: each step mixes the next token of every running request with a part of the prompts still to be read. `models.py`
keeps several engines within a memory budget. `compare.py` scores one model's answer by other models. `http/` speaks the
APIs of OpenAI and Anthropic. `page/` is the chat page.
"""
