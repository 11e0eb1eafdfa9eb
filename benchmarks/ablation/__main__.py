from benchmarks.ablation.command import main

main()
