from benchmarks.acceleration.command import main

main()
