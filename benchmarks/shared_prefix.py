"""ICL with shared demos, encoded once, beside every prompt encoded whole: same answers, how much faster.

python -m benchmarks.shared_prefix
"""

import statistics
import time

import torch

from ia2 import passes, world
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.evaluation import Answer, Variant, answer
from ia2.models import load_model
from ia2.task import Task

N_DEMOS, N_QUERIES, REPEATS, GOAL = 16, 500, 5, 5.0


def main() -> None:
    """Alternate the two, check that they agree to 1e-4, and print medians, spread and ratio."""
    torch.set_num_threads(1)
    lm, task = load_model("tiny", device="cpu"), Task(("0", "1"))
    demos = tuple(Example(**row) for row in world.TASKS["mood"].rows(N_DEMOS, 0))
    queries = [Example(**row) for row in world.TASKS["mood"].rows(N_QUERIES, 0, "test")]
    icl, threshold = Variant("icl", Contexts(demos, "fixed")), passes.PREFIX_TOKENS

    def timed(least: int) -> tuple[float, list[Answer]]:
        passes.PREFIX_TOKENS = least
        start = time.perf_counter()
        answers = answer(lm, task, queries, icl)
        return time.perf_counter() - start, answers

    pairs = [(timed(threshold), timed(10**9)) for _ in range(REPEATS + 1)][1:]  # the first warms up
    (_, shared), (_, whole) = pairs[-1]
    apart = max(abs(a.confidence - b.confidence) for a, b in zip(shared, whole, strict=True))
    times = [[seconds for seconds, _ in side] for side in zip(*pairs, strict=True)]
    for name, seconds in zip(("shared", "whole"), times, strict=True):
        print(f"{name}: median {statistics.median(seconds):.3f} s [{min(seconds):.3f}, {max(seconds):.3f}]")
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    print(f"{ratio:.1f} times faster (goal {GOAL:.0f}); answers apart by {apart:.1e} at most")


if __name__ == "__main__":
    main()
