"""Importing this hides all objects of the process from garbage collection: the last import of the server of `forked`.

A fork's collections then neither walk through torch nor write to the memory that it shares with the server.
"""

import gc

gc.collect()
gc.freeze()
