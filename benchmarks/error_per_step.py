"""The command of `benchmarks.plots.error_per_step`."""

from benchmarks.plots.error_per_step import main

if __name__ == "__main__":
    main()
