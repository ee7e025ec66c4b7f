"""Eight groups against one on the article's network: steps per second in turns, and graph ops.

`python -m benchmarks.groups [--rounds N]`, on a machine that does nothing else.
"""

import argparse
import statistics
import time

from benchmarks.throughput import WORK, data, ours, tf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    build, side, batch, steps = WORK["cnn"]
    made = {count: ours(build, *data(side), batch, count, guarded=False) for count in (1, 8)}
    speeds: dict[int, list[float]] = {1: [], 8: []}
    for run in made.values():
        run(20)
    for _ in range(rounds):
        for count, run in made.items():
            began = time.perf_counter()
            run(steps)
            speeds[count].append(steps / (time.perf_counter() - began))
    ratios = [eight / one for one, eight in zip(speeds[1], speeds[8], strict=True)]
    for count, run in made.items():
        print(f"{count} group(s): {statistics.median(speeds[count]):.1f} steps/s, {ops(run.train)} graph ops")
    print(f"eight / one: median {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


def ops(function: tf.types.experimental.GenericFunction) -> int:
    """Nodes of the compiled function and of every function it calls."""
    graph = function.get_concrete_function().graph.as_graph_def()
    return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)


if __name__ == "__main__":
    main()
