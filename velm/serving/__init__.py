"""`velm serve`: captions, embeddings, similarity and search over HTTP, with batches across requests.

A request passes through the guard (`guard.py`: token, size of the body), is parsed (`bodies.py`), reads its images
(`images.py`) in a pool of threads and waits in the batcher (`batcher.py`) for the one thread that computes
(`engine.py`). Needs the extra `serve`: import `velm.serving.server` when it is used.
"""
