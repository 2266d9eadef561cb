"""VELM beside its peers, on the same work, in one run: `python -m benchmarks`.

    workloads/    what is measured, one file each: systems, proof that the work is the same
    peers/        open_clip, transformers, plain PyTorch and Lightning, as they come
    harness/      turns, processes, load, memory, shares of time, the report
    inputs ours steps proofs                 of training steps
    photographs processes witness            of runs from the command line
    growth profile_fit                       what docs/performance.md draws and lists beside

The other files are scripts of their own, each with its command at its head; docs/results.md has what they found.
"""
