"""Speed and memory beside references in the same process; see docs/performance.md."""
