"""The benchmark suite: workloads, peers and how they are measured."""
