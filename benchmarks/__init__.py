"""VELM and its peers on the same work, in one run: `python -m benchmarks`.

    workloads/    one file per workload: the systems, and a proof that they do the same work
    peers/        open_clip, transformers, plain PyTorch and Lightning, unmodified
    harness/      alternation, processes, machine load, memory, profiles, the report
    inputs ours steps proofs                 for training steps
    photographs processes witness            for whole runs from the command line
    growth profile_fit                       the plot and the profile in docs/performance.md

The other files are separate scripts, each with its command at the top; docs/results.md lists their results.
"""
