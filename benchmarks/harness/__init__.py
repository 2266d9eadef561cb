"""How workloads are measured and told of."""
