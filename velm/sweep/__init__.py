"""`velm sweep`: a hyper-parameter search by optuna whose trials are ordinary runs of `velm fit`, a process each.

study.yaml ── study.py ─┐
base.yaml, overrides ───┴─ check.py ── sweep.py ── trials.py: velm fit ... in FOLDER/trial_007
                                           │
                          FOLDER/study.journal ── results.py ── table, best.yaml ── page.py: report.html
"""
