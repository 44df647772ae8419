"""How fast the ops are, next to what else one could write: `python -m dfqlab_kernels.bench [name ...]`.

First the machine, its copy bandwidth and its read rate, then every op, case by case, its competitors in turn within
each round. A results file for each device, `kernels/bench/results/<device>.json`, is rewritten after every row.
"""
