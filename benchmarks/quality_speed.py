"""The command of `benchmarks.plots.quality_speed`."""

from benchmarks.plots.quality_speed import main

if __name__ == "__main__":
    main()
